// Package interop holds the tests against the unmodified JavaScript library, @fireproof/core 0.24.19.
//
// They run with the build tag interop, since they need Node and an `npm ci` in this directory:
//
//	go test -tags interop ./interop
//
// driver.mjs opens databases with the real library and does what the tests tell it, one command after another.
package interop
