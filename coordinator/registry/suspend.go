package registry

import (
	"strconv"
	"time"
)

// user returns the user with the login.
func (d *decision) user(login string) (*User, error) {
	if u := d.state.UserByLogin(login); u != nil {
		return u, nil
	}
	return nil, refuse(ErrNotFound, "there is no user %s", cut(login))
}

func (d *decision) suspendUser(c SuspendUser) error {
	old, err := d.user(c.Login)
	if err != nil {
		return err
	}
	d.result.User = old
	if !old.Suspended.IsZero() {
		return nil
	}
	u := *old
	u.Suspended = d.now
	d.changeUser("user.suspend", u)
	for _, device := range d.state.DevicesOf(u.ID) {
		d.result.Revoked = append(d.result.Revoked, device.NodeKey)
	}
	return nil
}

func (d *decision) resumeUser(c ResumeUser) error {
	old, err := d.user(c.Login)
	if err != nil {
		return err
	}
	d.result.User = old
	if old.Suspended.IsZero() {
		return nil
	}
	u := *old
	u.Suspended = time.Time{}
	d.changeUser("user.resume", u)
	return nil
}

// changeUser replaces a user.
func (d *decision) changeUser(action string, u User) {
	d.changes.Users = []User{u}
	d.result.User = &u
	d.tell(action, u.ID.String())
	d.detail("login", u.Login)
	d.detail("devices", strconv.Itoa(len(d.state.DevicesOf(u.ID))))
}
