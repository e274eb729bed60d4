package headsync

import "testing"

// TopicOf is the topic of a ledger.
func TopicOf(t testing.TB, s Secrets, ledger [32]byte) string {
	c, err := newCapability(s, ledger)
	if err != nil {
		t.Fatal(err)
	}
	return c.topic
}
