//go:build unix

package main

import "syscall"

// private keeps what this process makes from other users.
func private() { syscall.Umask(0o077) }
