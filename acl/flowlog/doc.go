// Package flowlog holds the records of what a device's packet filter decided:
// one for each flow that it admitted and one for each kind of denial, with both
// identities, the rule and the policy's epoch.
//
// A Record is the value, its encoding is protobuf (package flowlogpb, whose
// .proto file says what every field means; Append and Parse). A record is
// written when its flow begins and again, under the same ID and with totals,
// when it ends; who keeps records keeps the newer one. Denials of one kind are
// one record for ten seconds: its Attempts counts them.
//
// A Log keeps the latest records in bounded memory, and says what changed since
// a reader last asked. It is pure: no clock, no goroutine, no lock. A Log is not
// safe for concurrent use.
package flowlog

//go:generate go run -C ../../tests/tools ./protogen ../../acl/flowlog/flowlogpb flow.proto
