package statefile_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/warren-overlay/warren/client/statefile"
	"golang.org/x/sys/windows"
)

// setList gives a file or directory another access list.
func setList(t *testing.T, path, sddl string, protection windows.SECURITY_INFORMATION) {
	t.Helper()
	descriptor, err := windows.SecurityDescriptorFromString(sddl)
	must(t, err)
	list, _, err := descriptor.DACL()
	must(t, err)
	must(t, windows.SetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION|protection, nil, nil, list, nil))
}

// TestAccessLists: a directory that is made is private, whatever its parent
// hands down, and one that others may read is refused, as are files in it.
func TestAccessLists(t *testing.T) {
	parent := t.TempDir()
	setList(t, parent, "D:P(A;OICI;FA;;;WD)", windows.PROTECTED_DACL_SECURITY_INFORMATION)
	path := filepath.Join(parent, "state")
	d := open(t, path)
	must(t, d.SavePreferences(statefile.Preferences{}))
	must(t, d.Close())
	must(t, open(t, path).Close())

	refused := func(what string) {
		t.Helper()
		if d, err := statefile.Open(path); !errors.Is(err, statefile.ErrPermissions) {
			t.Errorf("%s: %v, want ErrPermissions", what, err)
			if d != nil {
				d.Close()
			}
		}
	}
	file := filepath.Join(path, "preferences.json")
	setList(t, file, "D:(A;;FR;;;BU)", windows.PROTECTED_DACL_SECURITY_INFORMATION)
	refused("a file for all users")
	must(t, os.Remove(file))
	setList(t, path, "D:(A;OICI;FA;;;BA)", windows.UNPROTECTED_DACL_SECURITY_INFORMATION)
	refused("a directory that inherits")
	setList(t, path, "D:P(A;OICI;FA;;;BA)(A;OICI;FR;;;WD)", windows.PROTECTED_DACL_SECURITY_INFORMATION)
	refused("a directory for everybody")
}
