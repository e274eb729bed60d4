package headsync

// TopicOf is the topic of a ledger.
func TopicOf(s Secrets, ledger [32]byte) string { return newCapability(s, ledger).topic }
