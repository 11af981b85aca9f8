package health_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/warren-overlay/warren/client/health"
)

var start = time.Date(2026, 11, 22, 8, 0, 0, 0, time.UTC)

func TestSetKeepsOneFactPerCodeAndSubject(t *testing.T) {
	var s health.Set
	first := health.Fact{Code: health.PeerRefused, Severity: health.Error, Subject: "db", Text: "a", Since: start}
	if !s.Put(first) {
		t.Fatal("a new fact changed nothing")
	}
	again := first
	again.Since = start.Add(time.Hour)
	if s.Put(again) {
		t.Error("the same fact later counts as a change")
	}
	again.Text = "b"
	if !s.Put(again) {
		t.Error("another text counts as no change")
	}
	want := []health.Fact{{Code: health.PeerRefused, Severity: health.Error, Subject: "db", Text: "b", Since: start}}
	if got := s.Facts(); !slices.Equal(got, want) {
		t.Errorf("facts %v, want %v", got, want)
	}
}

func TestFactsComeWorstFirst(t *testing.T) {
	var s health.Set
	for _, f := range []health.Fact{
		{Code: health.ClockSkew, Severity: health.Warning},
		{Code: health.PeerRefused, Severity: health.Alarm, Subject: "b"},
		{Code: health.LoginNeeded, Severity: health.Error},
		{Code: health.PeerRefused, Severity: health.Alarm, Subject: "a"},
	} {
		s.Put(f)
	}
	var got []string
	for _, f := range s.Facts() {
		got = append(got, fmt.Sprint(f.Severity, " ", f.Code, " ", f.Subject))
	}
	want := []string{"alarm peer-refused a", "alarm peer-refused b", "error login-needed ", "warning clock-skew "}
	if !slices.Equal(got, want) {
		t.Errorf("order %q, want %q", got, want)
	}
}

func TestClear(t *testing.T) {
	var s health.Set
	for _, subject := range []string{"a", "b"} {
		s.Put(health.Fact{Code: health.PeerRefused, Subject: subject})
	}
	if s.Clear(health.PeerRefused, "c") || !s.Clear(health.PeerRefused, "a") || !s.Has(health.PeerRefused) {
		t.Error("Clear removed the wrong fact")
	}
	if !s.ClearCode(health.PeerRefused) || s.ClearCode(health.PeerRefused) || s.Has(health.PeerRefused) {
		t.Error("ClearCode left something, or says so")
	}
}

func TestReplaceKeepsWhatStays(t *testing.T) {
	var s health.Set
	fact := func(subject string, since time.Time) health.Fact {
		return health.Fact{Code: health.PeerRefused, Subject: subject, Since: since}
	}
	other := health.Fact{Code: health.Revoked, Since: start}
	s.Put(other)
	if !s.Replace(health.PeerRefused, []health.Fact{fact("a", start), fact("b", start)}) {
		t.Error("new facts are no change")
	}
	later := start.Add(time.Hour)
	if !s.Replace(health.PeerRefused, []health.Fact{fact("b", later), fact("c", later)}) {
		t.Error("other facts are no change")
	}
	if s.Replace(health.PeerRefused, []health.Fact{fact("c", later), fact("b", later)}) {
		t.Error("the same facts are a change")
	}
	want := []health.Fact{other, fact("b", start), fact("c", later)}
	if got := s.Facts(); !slices.Equal(got, want) {
		t.Errorf("facts %v, want %v", got, want)
	}
}

func TestSetIsBounded(t *testing.T) {
	var s health.Set
	for i := range 10 * health.MaxPerCode {
		s.Put(health.Fact{Code: health.PeerRefused, Subject: fmt.Sprint(i)})
	}
	if !s.Put(health.Fact{Code: health.Revoked}) {
		t.Error("a full code keeps another code out")
	}
	if got := len(s.Facts()); got != health.MaxPerCode+1 || s.Dropped != 9*health.MaxPerCode {
		t.Errorf("%d facts and %d dropped, want %d and %d", got, s.Dropped, health.MaxPerCode+1, 9*health.MaxPerCode)
	}
}

func TestSeverityText(t *testing.T) {
	for _, s := range []health.Severity{health.Info, health.Warning, health.Error, health.Alarm} {
		raw, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var back health.Severity
		if err := json.Unmarshal(raw, &back); err != nil || back != s {
			t.Errorf("%s reads back as %v, %v", raw, back, err)
		}
	}
	var s health.Severity
	if err := s.UnmarshalText([]byte("catastrophe")); err == nil {
		t.Error("an unknown severity was taken")
	}
}
