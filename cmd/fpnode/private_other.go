//go:build !unix

package main

// private has nothing to do: there are no modes here.
func private() {}
