package soak

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// sample is what one process holds at one time.
type sample struct {
	at                      time.Time
	resident, heap          float64 // MB
	goroutines, descriptors float64
}

// measure looks at a process.
func measure(p *program) (sample, error) {
	s := sample{at: time.Now()}
	pid := p.cmd.Process.Pid
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return s, err
	}
	fields := strings.Fields(string(statm))
	if len(fields) < 2 {
		return s, fmt.Errorf("statm %q", statm)
	}
	pages, err := strconv.ParseFloat(fields[1], 64)
	if err != nil {
		return s, err
	}
	s.resident = pages * float64(os.Getpagesize()) / 1e6
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return s, err
	}
	s.descriptors = float64(len(open))
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + p.metrics + "/metrics")
	if err != nil {
		return s, err
	}
	defer response.Body.Close()
	found := 0
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		number, _ := strconv.ParseFloat(value, 64) // no number is no metric
		switch name {
		case "go_goroutines":
			s.goroutines = number
		case "go_memstats_heap_alloc_bytes":
			s.heap = number / 1e6
		default:
			continue
		}
		found++
	}
	if found != 2 {
		return s, fmt.Errorf("%d of 2 numbers are among the metrics of %s", found, p.metrics)
	}
	return s, nil
}

// quantity is what must not grow, and by how much it may all the same: the
// medians of a quarter each differ by that at most.
type quantity struct {
	name string
	of   func(sample) float64
	// slack is for what comes and goes, share for what caches grow to.
	slack, share float64
}

var quantities = []quantity{
	// The collector's garbage and fragmentation, which are some megabytes.
	{"resident MB", func(s sample) float64 { return s.resident }, 6, 0.2},
	{"heap MB", func(s sample) float64 { return s.heap }, 6, 0.2},
	// Connections that the sample happens to see; a leak of one a round is more
	// within minutes.
	{"goroutines", func(s sample) float64 { return s.goroutines }, 12, 0.1},
	{"descriptors", func(s sample) float64 { return s.descriptors }, 8, 0.1},
}

// growth compares the beginning of a series, after a fifth of it in which a
// program warms up, with its end. It returns false for too few samples.
func growth(series []sample, of func(sample) float64) (begin, end float64, ok bool) {
	if len(series) < 10 {
		return 0, 0, false
	}
	series = series[len(series)/5:]
	quarter := len(series) / 4
	return median(series[:quarter], of), median(series[len(series)-quarter:], of), true
}

func median(series []sample, of func(sample) float64) float64 {
	values := make([]float64, len(series))
	for i, s := range series {
		values[i] = of(s)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// judge reports what each quantity did, and fails the test where one grew.
func judge(t testing.TB, name string, series []sample) {
	t.Helper()
	for _, q := range quantities {
		begin, end, ok := growth(series, q.of)
		switch {
		case !ok:
			t.Errorf("%s: only %d samples: the run was too short to say anything", name, len(series))
			return
		case end > begin*(1+q.share)+q.slack:
			t.Errorf("%-12s %-12s GREW from %.1f to %.1f in %v", name, q.name, begin, end, series[len(series)-1].at.Sub(series[0].at).Round(time.Second))
		default:
			t.Logf("%-12s %-12s %.1f to %.1f", name, q.name, begin, end)
		}
	}
}

func TestGrowthIsSeen(t *testing.T) {
	series := func(f func(i int) float64) []sample {
		all := make([]sample, 100)
		for i := range all {
			all[i].goroutines = f(i)
		}
		return all
	}
	for _, test := range []struct {
		name string
		f    func(i int) float64
		grew bool
	}{
		{"flat", func(int) float64 { return 50 }, false},
		{"noise", func(i int) float64 { return 50 + float64(i*7919%9) }, false},
		{"warms up", func(i int) float64 { return min(80, 20+float64(i*6)) }, false},
		{"one a sample", func(i int) float64 { return 50 + float64(i) }, true},
	} {
		q := quantities[2]
		begin, end, ok := growth(series(test.f), q.of)
		if grew := end > begin*(1+q.share)+q.slack; !ok || grew != test.grew {
			t.Errorf("%s: from %v to %v, grew: %v", test.name, begin, end, grew)
		}
	}
	if _, _, ok := growth(make([]sample, 9), quantities[0].of); ok {
		t.Error("nine samples say something")
	}
}
