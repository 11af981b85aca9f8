package statefile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/windows"
)

// makePrivate makes the directory where it does not exist, with an access list
// of its own: what it would inherit from %ProgramData% lets every user of the
// machine read.
func makePrivate(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	own, err := ownSID()
	if err != nil {
		return err
	}
	// Full access for SYSTEM, Administrators and this process's user, here and
	// in all that is made here; P keeps the parent's entries out.
	descriptor, err := windows.SecurityDescriptorFromString(fmt.Sprintf("O:%[1]sD:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;%[1]s)", own))
	if err != nil {
		return err
	}
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return err
	}
	attributes := &windows.SecurityAttributes{SecurityDescriptor: descriptor}
	attributes.Length = uint32(unsafe.Sizeof(*attributes))
	err = windows.CreateDirectory(name, attributes)
	if errors.Is(err, windows.ERROR_ALREADY_EXISTS) {
		return nil // whether it is private is looked at next
	}
	return err
}

func ownSID() (*windows.SID, error) {
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return nil, fmt.Errorf("statefile: finding this process's user: %w", err)
	}
	return user.User.Sid, nil
}

// checkPrivate reports whether only SYSTEM, Administrators and this process's
// user may use path. A link is refused: what it points to may be changed by
// others.
func checkPrivate(path string, directory bool) error {
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("statefile: %w", err)
	}
	if directory != info.IsDir() || info.Mode()&(os.ModeSymlink|os.ModeIrregular) != 0 {
		return fmt.Errorf("%w: %s is a link or of another kind", ErrPermissions, path)
	}
	descriptor, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		return fmt.Errorf("statefile: reading who may use %s: %w", path, err)
	}
	if descriptor == nil {
		return notPrivate(path, "its file system keeps no access lists")
	}
	own, err := ownSID()
	if err != nil {
		return err
	}
	trusted := func(sid *windows.SID) bool {
		return sid.Equals(own) || sid.IsWellKnown(windows.WinLocalSystemSid) || sid.IsWellKnown(windows.WinBuiltinAdministratorsSid)
	}
	owner, _, err := descriptor.Owner()
	if err != nil || owner == nil || !trusted(owner) {
		return notPrivate(path, fmt.Sprintf("it belongs to %v", owner))
	}
	control, _, err := descriptor.Control()
	if err != nil {
		return fmt.Errorf("statefile: reading who may use %s: %w", path, err)
	}
	if directory && control&windows.SE_DACL_PROTECTED == 0 {
		return notPrivate(path, "it inherits the access list of the directory that it is in")
	}
	list, _, err := descriptor.DACL()
	if err != nil || list == nil {
		return notPrivate(path, "it has no access list, so that everybody may use it")
	}
	return checkList(path, list, trusted)
}

// checkList reports whether an access list lets nobody in who is not trusted.
func checkList(path string, list *windows.ACL, trusted func(*windows.SID) bool) error {
	for i := range uint32(list.AceCount) {
		var entry *windows.ACCESS_ALLOWED_ACE
		if err := windows.GetAce(list, i, &entry); err != nil {
			return fmt.Errorf("statefile: reading who may use %s: %w", path, err)
		}
		switch entry.Header.AceType {
		case windows.ACCESS_DENIED_ACE_TYPE:
		case windows.ACCESS_ALLOWED_ACE_TYPE:
			sid := (*windows.SID)(unsafe.Pointer(&entry.SidStart))
			if !trusted(sid) {
				return notPrivate(path, fmt.Sprintf("%v may use it", sid))
			}
		default:
			return notPrivate(path, fmt.Sprintf("its access list has an entry of type %d", entry.Header.AceType))
		}
	}
	return nil
}

// notPrivate says what to do; the names are those of SYSTEM and Administrators
// in every language.
func notPrivate(path, why string) error {
	return fmt.Errorf("%w: %s: %s; others may have read the keys in it. Remove it and join again, or run as an administrator: "+
		`icacls "%s" /setowner *S-1-5-32-544 /T && icacls "%s" /inheritance:r /grant:r *S-1-5-18:(OI)(CI)F *S-1-5-32-544:(OI)(CI)F`,
		ErrPermissions, path, why, path, path)
}

// acquire locks f until it is closed or the process ends.
func acquire(f *os.File) error {
	const flags = windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY
	err := windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, &windows.Overlapped{})
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return ErrLocked
	}
	return err
}

// syncDirectory does nothing: Windows writes directory entries through.
func syncDirectory(string) error { return nil }
