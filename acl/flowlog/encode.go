package flowlog

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/warren-overlay/warren/acl/filter"
	"github.com/warren-overlay/warren/acl/flowlog/flowlogpb"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/acl/ruleset"
)

// Batch is what one device reports at a time.
type Batch struct {
	// Reporter is the device that decided.
	Reporter ident.NodeID
	// Records are in the order of their last changes.
	Records []Record
	// Lost is how many records or changes were lost before.
	Lost uint64
}

// Limits of a batch that Parse accepts.
const (
	// MaxBatch bounds the encoding: about 4,000 records.
	MaxBatch = 1 << 20
	// maxText bounds each text: the longest are ids of rules.
	maxText = 1024
)

// ErrMalformed is wrapped by the errors of Parse.
var ErrMalformed = errors.New("flowlog: malformed record")

// Append appends the encoding of the batch (flowlogpb.Batch).
func Append(b []byte, batch *Batch) ([]byte, error) {
	out := &flowlogpb.Batch{Reporter: uint64(batch.Reporter), Lost: batch.Lost}
	for i := range batch.Records {
		out.Records = append(out.Records, encode(&batch.Records[i]))
	}
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(b, out)
	if err != nil {
		return b, fmt.Errorf("flowlog: encoding a batch: %w", err)
	}
	return b, nil
}

func encode(r *Record) *flowlogpb.Record {
	out := &flowlogpb.Record{
		Id: r.ID, Verdict: flowlogpb.Verdict_VERDICT_DENIED, Direction: flowlogpb.Direction_DIRECTION_OUT,
		Source: encodeParty(&r.Source), Destination: encodeParty(&r.Destination), Protocol: uint32(r.Protocol),
		Rule: string(r.Rule), PolicyEpoch: uint64(r.Epoch), Reason: r.Reason,
		Would: flowlogpb.Would(r.Would), WouldRule: string(r.WouldRule),
		Start: encodeTime(r.Start), End: encodeTime(r.End), EndReason: r.EndReason, EndEpoch: uint64(r.EndEpoch),
		Sent: encodeTraffic(r.Sent), Received: encodeTraffic(r.Received), Attempts: r.Attempts, Others: r.Others,
		Candidate: flowlogpb.Would(r.Candidate.Would), CandidateRule: string(r.Candidate.Rule), CandidateEpoch: uint64(r.Candidate.Epoch),
	}
	if r.Allowed {
		out.Verdict = flowlogpb.Verdict_VERDICT_ALLOWED
	}
	if r.Opener == filter.Inbound {
		out.Direction = flowlogpb.Direction_DIRECTION_IN
	}
	return out
}

func encodeParty(p *Party) *flowlogpb.Party {
	return &flowlogpb.Party{
		Node: uint64(p.Node), Name: p.Name, User: uint64(p.User), Certificate: p.Certificate,
		Address: p.Address.Addr().AsSlice(), Port: uint32(p.Address.Port()),
	}
}

func encodeTraffic(t Traffic) *flowlogpb.Traffic {
	if t == (Traffic{}) {
		return nil
	}
	return &flowlogpb.Traffic{Packets: t.Packets, Bytes: t.Bytes}
}

func encodeTime(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.UnixNano())
}

// Parse reads the encoding of one batch. What a later version added is passed
// over. The error wraps ErrMalformed.
func Parse(b []byte) (*Batch, error) {
	if len(b) > MaxBatch {
		return nil, fmt.Errorf("%w: a batch of %d bytes, over %d", ErrMalformed, len(b), MaxBatch)
	}
	in := &flowlogpb.Batch{}
	if err := proto.Unmarshal(b, in); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if in.GetReporter() == 0 {
		return nil, fmt.Errorf("%w: a batch of no device", ErrMalformed)
	}
	batch := &Batch{Reporter: ident.NodeID(in.GetReporter()), Lost: in.GetLost()}
	for i, encoded := range in.GetRecords() {
		r, err := decode(encoded)
		if err != nil {
			return nil, fmt.Errorf("%w: record %d: %w", ErrMalformed, i, err)
		}
		batch.Records = append(batch.Records, r)
	}
	return batch, nil
}

func decode(in *flowlogpb.Record) (r Record, err error) {
	switch in.GetVerdict() {
	case flowlogpb.Verdict_VERDICT_ALLOWED:
		r.Allowed = true
	case flowlogpb.Verdict_VERDICT_DENIED:
	case flowlogpb.Verdict_VERDICT_UNSPECIFIED:
		fallthrough
	default:
		return r, fmt.Errorf("verdict %d", in.GetVerdict())
	}
	switch in.GetDirection() {
	case flowlogpb.Direction_DIRECTION_IN:
		r.Opener = filter.Inbound
	case flowlogpb.Direction_DIRECTION_OUT:
		r.Opener = filter.Outbound
	case flowlogpb.Direction_DIRECTION_UNSPECIFIED:
		fallthrough
	default:
		return r, fmt.Errorf("direction %d", in.GetDirection())
	}
	switch {
	case in.GetProtocol() > 255:
		return r, fmt.Errorf("protocol %d", in.GetProtocol())
	case in.GetWould() < 0 || in.GetWould() > flowlogpb.Would_WOULD_DENY:
		return r, fmt.Errorf("audit verdict %d", in.GetWould())
	case in.GetCandidate() < 0 || in.GetCandidate() > flowlogpb.Would_WOULD_DENY:
		return r, fmt.Errorf("candidate's verdict %d", in.GetCandidate())
	case in.GetStart() == 0 || in.GetStart() > 1<<63-1 || in.GetEnd() > 1<<63-1:
		return r, fmt.Errorf("from %d to %d", in.GetStart(), in.GetEnd())
	}
	for _, text := range []string{in.GetRule(), in.GetWouldRule(), in.GetCandidateRule(), in.GetReason(), in.GetEndReason()} {
		if len(text) > maxText {
			return r, fmt.Errorf("a text of %d bytes", len(text))
		}
	}
	if r.Source, err = decodeParty(in.GetSource()); err != nil {
		return r, fmt.Errorf("source: %w", err)
	}
	if r.Destination, err = decodeParty(in.GetDestination()); err != nil {
		return r, fmt.Errorf("destination: %w", err)
	}
	r.ID, r.Protocol = in.GetId(), uint8(in.GetProtocol())
	r.Rule, r.Epoch, r.Reason = ruleset.RuleID(in.GetRule()), ruleset.Epoch(in.GetPolicyEpoch()), in.GetReason()
	r.Would, r.WouldRule = ruleset.Would(in.GetWould()), ruleset.RuleID(in.GetWouldRule())
	r.Candidate = ruleset.Outlook{
		Epoch: ruleset.Epoch(in.GetCandidateEpoch()), Would: ruleset.Would(in.GetCandidate()), Rule: ruleset.RuleID(in.GetCandidateRule()),
	}
	r.Start, r.End = decodeTime(in.GetStart()), decodeTime(in.GetEnd())
	r.EndReason, r.EndEpoch = in.GetEndReason(), ruleset.Epoch(in.GetEndEpoch())
	r.Sent = Traffic{in.GetSent().GetPackets(), in.GetSent().GetBytes()}
	r.Received = Traffic{in.GetReceived().GetPackets(), in.GetReceived().GetBytes()}
	r.Attempts, r.Others = in.GetAttempts(), in.GetOthers()
	return r, nil
}

func decodeParty(in *flowlogpb.Party) (Party, error) {
	addr, ok := netip.AddrFromSlice(in.GetAddress())
	switch {
	case !ok:
		return Party{}, fmt.Errorf("an address of %d bytes", len(in.GetAddress()))
	case addr.Is4In6():
		return Party{}, errors.New("an IPv4 address in 16 bytes")
	case in.GetPort() > 65535:
		return Party{}, fmt.Errorf("port %d", in.GetPort())
	case in.GetNode() == 0:
		return Party{}, errors.New("no device")
	case len(in.GetName()) > maxText:
		return Party{}, fmt.Errorf("a name of %d bytes", len(in.GetName()))
	}
	return Party{
		Node: ident.NodeID(in.GetNode()), Name: in.GetName(), User: ident.UserID(in.GetUser()), Certificate: in.GetCertificate(),
		Address: netip.AddrPortFrom(addr, uint16(in.GetPort())),
	}, nil
}

func decodeTime(nanoseconds uint64) time.Time {
	if nanoseconds == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(nanoseconds)).UTC()
}
