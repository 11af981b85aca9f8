//go:build linux

package netns

import (
	"os"
	"testing"

	"github.com/warren-overlay/warren/tests/lab"
)

func TestMain(m *testing.M) {
	code := m.Run()
	lab.RemovePrograms()
	os.Exit(code)
}
