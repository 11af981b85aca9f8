package localapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"
)

// FlowParty is one side of a Flow.
type FlowParty struct {
	// Node and Name are the device's id and name.
	Node string `json:"node"`
	Name string `json:"name"`
	// User is the owner's login where it is known, UserID the owner's id; both
	// are empty for a tagged device.
	User   string `json:"user,omitempty"`
	UserID string `json:"user_id,omitempty"`
	// Certificate is the serial of the device's certificate, which says which
	// groups, tags and postures it had.
	Certificate uint64     `json:"certificate"`
	Addr        netip.Addr `json:"addr"`
	// Port is 0 for a protocol that has none; a ping has its identifier as the
	// source's.
	Port uint16 `json:"port,omitempty"`
}

// Flow is the record of a flow, or of denials of one kind within ten seconds:
// package acl/flowlog says what it means.
type Flow struct {
	// ID is the same in the record of a flow's opening and that of its end,
	// which replaces it.
	ID string `json:"id"`
	// Verdict is "allowed" or "denied".
	Verdict string `json:"verdict"`
	// Direction is "out" where this device opened the flow, or tried to.
	Direction   string    `json:"direction"`
	Source      FlowParty `json:"source"`
	Destination FlowParty `json:"destination"`
	// Protocol is a name, or a number where it has none.
	Protocol string `json:"protocol"`
	// Rule admits or denies it; empty where no rule matches.
	Rule        string `json:"rule"`
	PolicyEpoch uint64 `json:"policy_epoch"`
	// Reason is why it was denied, such as "drop_no_rule".
	Reason string `json:"reason,omitempty"`
	// Would is "would_allow" or "would_deny" where rules in audit mode would
	// have changed the verdict, WouldRule the one that would.
	Would     string `json:"would,omitempty"`
	WouldRule string `json:"would_rule,omitempty"`
	// CandidateEpoch is that of the candidate document that was asked, too, if
	// any. Candidate is "would_allow" or "would_deny" where it decides otherwise,
	// CandidateRule its rule that does; empty where it has none that matches.
	CandidateEpoch uint64    `json:"candidate_epoch,omitempty"`
	Candidate      string    `json:"candidate,omitempty"`
	CandidateRule  string    `json:"candidate_rule,omitempty"`
	Start          time.Time `json:"start"`
	// End is zero while the flow lasts, the time of the last denial for those.
	End       time.Time `json:"end,omitzero"`
	EndReason string    `json:"end_reason,omitempty"`
	EndEpoch  uint64    `json:"end_epoch,omitempty"`
	// What the source sent and received, known at the end.
	SentPackets     uint64 `json:"sent_packets,omitempty"`
	SentBytes       uint64 `json:"sent_bytes,omitempty"`
	ReceivedPackets uint64 `json:"received_packets,omitempty"`
	ReceivedBytes   uint64 `json:"received_bytes,omitempty"`
	// Attempts counts the packets of a denied kind.
	Attempts uint64 `json:"attempts,omitempty"`
	// Others says that the record stands for all further denials of the peer.
	Others bool `json:"others,omitempty"`
}

// FlowPage is a part of the records.
type FlowPage struct {
	Flows []Flow
	// Next is what to ask for the records after these.
	Next uint64
	// Gap says that records in between were pushed out by newer ones.
	Gap bool
	// Lost is how many events never became records.
	Lost uint64
	// Changed is closed when there is something new.
	Changed <-chan struct{}
}

// FlowsRequest asks for records.
type FlowsRequest struct {
	// Denied leaves out what was allowed.
	Denied bool
	// Follow goes on with what is new until the context ends.
	Follow bool
}

// FlowLine is one line of the stream of records: a record, or what happened to
// records that are missing.
type FlowLine struct {
	*Flow
	// Gap says that records before this line were pushed out before they could
	// be sent.
	Gap bool `json:"gap,omitempty"`
	// Lost is how many events never became records since the last line that
	// said so.
	Lost uint64 `json:"lost,omitempty"`
}

func (s *Server) flows(r *http.Request) (any, error) {
	var f FlowsRequest
	for name, value := range map[string]*bool{"denied": &f.Denied, "follow": &f.Follow} {
		text := r.URL.Query().Get(name)
		if text == "" {
			continue
		}
		var err error
		if *value, err = strconv.ParseBool(text); err != nil {
			return nil, Errorf(CodeBadRequest, "%s=%q is neither true nor false", name, text)
		}
	}
	return stream{"application/x-ndjson", func(ctx context.Context, w io.Writer) error {
		return s.writeFlows(ctx, w, f)
	}}, nil
}

// writeFlows writes the records as lines of JSON, the oldest first.
func (s *Server) writeFlows(ctx context.Context, w io.Writer, f FlowsRequest) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	next, lost := uint64(0), uint64(0)
	for {
		page, err := s.decided.Flows(ctx, next)
		if err != nil {
			return err
		}
		if page.Gap && next != 0 || page.Lost != lost {
			if err := e.Encode(FlowLine{Gap: page.Gap && next != 0, Lost: page.Lost - lost}); err != nil {
				return err
			}
			lost = page.Lost
		}
		for i := range page.Flows {
			if f.Denied && page.Flows[i].Verdict != "denied" {
				continue
			}
			if err := e.Encode(FlowLine{Flow: &page.Flows[i]}); err != nil {
				return err
			}
		}
		next = page.Next
		switch {
		case len(page.Flows) > 0:
			continue
		case !f.Follow:
			return nil
		}
		if err := flush(w); err != nil {
			return err
		}
		select {
		case <-page.Changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// Flows hands each line of the records to each, until there is no more, ctx
// ends, or each returns an error.
func (c *Client) Flows(ctx context.Context, f FlowsRequest, each func(FlowLine) error) error {
	q := url.Values{"denied": {strconv.FormatBool(f.Denied)}, "follow": {strconv.FormatBool(f.Follow)}}
	body, err := c.open(ctx, http.MethodGet, "flows?"+q.Encode())
	if err != nil {
		return err
	}
	defer body.Close()
	d := json.NewDecoder(body)
	for {
		var line FlowLine
		switch err := d.Decode(&line); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("localapi: reading records: %w", err)
		}
		if err := each(line); err != nil {
			return err
		}
	}
}
