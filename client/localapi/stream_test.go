package localapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/warren-overlay/warren/client/localapi"
)

// readFlows returns what the lines say, most of them at most.
func readFlows(ctx context.Context, c *localapi.Client, r localapi.FlowsRequest, most int) (got []string, err error) {
	enough := errors.New("enough")
	err = c.Flows(ctx, r, func(line localapi.FlowLine) error {
		text := fmt.Sprint(line.Gap, line.Lost)
		if line.Flow != nil {
			text = line.ID + line.Verdict + line.Source.Name
		}
		if got = append(got, text); len(got) == most {
			return enough
		}
		return nil
	})
	if errors.Is(err, enough) {
		err = nil
	}
	return got, err
}

func TestFlowStream(t *testing.T) {
	f := newFake()
	c := localapi.NewClient(serve(t, f, slog.New(slog.DiscardHandler)))
	for _, tc := range []struct {
		request localapi.FlowsRequest
		want    string
	}{
		{localapi.FlowsRequest{}, "[false 2 1allowed<a> true 0 2denied<a>]"},
		{localapi.FlowsRequest{Denied: true}, "[false 2 true 0 2denied<a>]"},
	} {
		if got, err := readFlows(t.Context(), c, tc.request, 10); err != nil || fmt.Sprint(got) != tc.want {
			t.Errorf("%+v: %q, %v", tc.request, got, err)
		}
	}
	// A reader that follows has what there is before the stream ends.
	if got, err := readFlows(t.Context(), c, localapi.FlowsRequest{Follow: true}, 4); err != nil || len(got) != 4 {
		t.Errorf("followed: %q, %v", got, err)
	}
	f.err = localapi.Errorf(localapi.CodeConflict, "no")
	if got, err := readFlows(t.Context(), c, localapi.FlowsRequest{}, 10); err == nil {
		t.Errorf("records that cannot be read: %q", got)
	}
}

func TestCaptureStream(t *testing.T) {
	f := newFake()
	c := localapi.NewClient(serve(t, f, slog.New(slog.DiscardHandler)))
	read := func(r localapi.CaptureRequest) (string, error) {
		body, err := c.Capture(t.Context(), r)
		if err != nil {
			return "", err
		}
		defer body.Close()
		got, err := io.ReadAll(body)
		return string(got), err
	}
	if got, err := read(localapi.CaptureRequest{Peer: "db", Denied: true, Packets: 3, Duration: time.Second}); err != nil || got != "capture of dbtrue 3 1s" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := read(localapi.CaptureRequest{Peer: "broken"}); err == nil {
		t.Errorf("what broke off was taken for the whole: %q", got)
	}
	f.err = localapi.Errorf(localapi.CodeConflict, "no")
	var e *localapi.Error
	if _, err := read(localapi.CaptureRequest{}); !errors.As(err, &e) || e.Code != localapi.CodeConflict {
		t.Errorf("refused: %v", err)
	}
}
