// Package keyring holds every secret a node has, and seals and opens bytes with them.
package keyring
