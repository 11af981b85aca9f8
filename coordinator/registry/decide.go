package registry

import (
	"crypto/subtle"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/warren-overlay/warren/acl/authority"
	"github.com/warren-overlay/warren/acl/ident"
	"github.com/warren-overlay/warren/coordinator/audit"
)

const (
	// MaxKeyLifetime bounds how long a join key may be valid.
	MaxKeyLifetime = 366 * 24 * time.Hour
	// EphemeralGrace is how long an ephemeral device may be offline.
	EphemeralGrace = 30 * time.Minute
	// KeyGrace is how long a join key is listed that cannot be used any more.
	KeyGrace = 7 * 24 * time.Hour
	// FormerKeyLife is how long a node key is remembered that is no device's any more:
	// as long as relays are to refuse it by name. No token for it is younger, and a
	// relay may have it admitted once more after its end, while it does not reach the
	// coordinator.
	FormerKeyLife = 3 * authority.RelayTokenValidity
	// MaxPolicy is the longest policy text in bytes.
	MaxPolicy = 1 << 20

	// maxUsers and maxDevices are what one map can name (wire.MaxServerMessage
	// at 500 bytes a peer); maxKeys bounds what a script in a loop can cost.
	maxUsers   = 1 << 16
	maxDevices = 1 << 16
	maxKeys    = 1 << 17
	// maxRemoved is how many devices one RemoveExpired removes, and how many
	// keys one PruneKeys: the audit entry names each of them, and has room for
	// that.
	maxRemoved = 32
	// maxFormerKeys bounds the former keys that are remembered: relays are told of no
	// more. The oldest are forgotten.
	maxFormerKeys = authority.MaxRelayRevocations
	// maxForgotten is how many of them one command forgets: more than it adds, and
	// little enough for one transaction.
	maxForgotten = 2 * maxRemoved
)

// Decide says what cmd changes in s. It refuses with an error of this package
// and no changes; s itself is never written to. The actor is who wants it, for
// the audit entry. Changes that are Empty need no commit.
func Decide(s *State, actor string, cmd Command, now time.Time) (Changes, Result, error) {
	now = now.UTC().Truncate(time.Millisecond)
	d := &decision{state: s, now: now, changes: Changes{Counters: s.counters}, entry: audit.Entry{Time: now, Actor: actor}}
	var err error
	switch c := cmd.(type) {
	case CreateUser:
		err = d.createUser(c)
	case SuspendUser:
		err = d.suspendUser(c)
	case ResumeUser:
		err = d.resumeUser(c)
	case CreateKey:
		err = d.createKey(c)
	case RevokeKey:
		err = d.revokeKey(c)
	case RegisterDevice:
		err = d.registerDevice(c)
	case RotateNodeKey:
		err = d.rotateNodeKey(c)
	case SetTags:
		err = d.setTags(c)
	case RevokeDevice:
		err = d.revokeDevice(c)
	case Logout:
		err = d.logout(c)
	case PruneKeys:
		d.pruneKeys()
	case AdvertiseRoutes:
		err = d.advertiseRoutes(c)
	case ApproveRoutes:
		err = d.approveRoutes(c)
	case RemoveRoutes:
		err = d.removeRoutes(c)
	case RemoveExpired:
		d.removeExpired(c)
	case SetPolicy:
		err = d.setPolicy(c)
	case SetCandidate:
		err = d.setCandidate(c)
	case ClearCandidate:
		d.clearCandidate()
	case PromoteCandidate:
		err = d.promoteCandidate(c)
	case SetFeature:
		err = d.setFeature(c)
	case RenewCertificates:
		err = d.renewCertificates(c)
	default:
		panic(fmt.Sprintf("BUG: registry: unknown command %T", cmd))
	}
	if err != nil {
		return Changes{}, Result{}, err
	}
	if d.entry.Action != "" {
		d.changes.Audit = &d.entry
		d.keepFormerKeys()
	}
	return d.changes, d.result, nil
}

// keepFormerKeys remembers the node keys that cease to be a device's, those of
// revoked devices aside, which are remembered for ever, and forgets those that are a
// device's again.
func (d *decision) keepFormerKeys() {
	ends := func(k ident.NodeKey) {
		d.changes.FormerKeys = append(d.changes.FormerKeys, FormerKey{k, d.now})
	}
	for _, device := range d.changes.Devices {
		old := d.state.Device(device.ID)
		if old != nil && old.NodeKey == device.NodeKey {
			continue
		}
		if old != nil {
			ends(old.NodeKey)
		}
		if d.state.former[device.NodeKey] != nil {
			d.changes.ForgottenKeys = append(d.changes.ForgottenKeys, device.NodeKey)
		}
	}
	for _, id := range d.changes.Removed {
		if old := d.state.Device(id); old != nil && !slices.ContainsFunc(d.changes.Revocations, func(r Revocation) bool { return r.Node == id }) {
			ends(old.NodeKey)
		}
	}
	if len(d.changes.FormerKeys) == 0 {
		return
	}
	// Whoever adds some takes old ones away, so that there are no more than end in
	// FormerKeyLife, and some.
	regained := d.changes.ForgottenKeys
	for _, k := range d.state.FormerKeys() {
		if slices.Contains(regained, k.NodeKey) {
			continue
		}
		over := len(d.state.former) + len(d.changes.FormerKeys) - len(d.changes.ForgottenKeys) - maxFormerKeys
		if len(d.changes.ForgottenKeys) == maxForgotten || over <= 0 && d.now.Sub(k.Ended) < FormerKeyLife {
			break
		}
		d.changes.ForgottenKeys = append(d.changes.ForgottenKeys, k.NodeKey)
	}
}

// Refused returns the changes that write down a refused registration, and
// nothing else.
func Refused(s *State, actor string, cmd RegisterDevice, refusal error, now time.Time) Changes {
	return Changes{Counters: s.counters, Audit: &audit.Entry{
		Time: now.UTC().Truncate(time.Millisecond), Actor: actor, Action: "device.register.refused", Target: cmd.Key,
		Details: []audit.Detail{{Key: "reason", Value: refusal.Error()}, {Key: "machine", Value: cmd.Machine.String()}},
	}}
}

// RefusedMany is Refused for registrations that are only counted.
func RefusedMany(s *State, count uint64, now time.Time) Changes {
	return Changes{Counters: s.counters, Audit: &audit.Entry{
		Time: now.UTC().Truncate(time.Millisecond), Actor: "coordinator", Action: "device.register.refused",
		Details: []audit.Detail{{Key: "count", Value: strconv.FormatUint(count, 10)}},
	}}
}

// decision is the work on one command.
type decision struct {
	state   *State
	now     time.Time
	changes Changes
	result  Result
	entry   audit.Entry
}

// tell begins the audit entry; without it the changes are Empty.
func (d *decision) tell(action, target string) { d.entry.Action, d.entry.Target = action, target }

func (d *decision) detail(key, value string) {
	d.entry.Details = append(d.entry.Details, audit.Detail{Key: key, Value: value})
}

func (d *decision) createUser(c CreateUser) error {
	login, err := NormalLogin(c.Login)
	if err != nil {
		return err
	}
	if d.state.UserByLogin(login) != nil {
		return refuse(ErrExists, "the user %s", login)
	}
	if len(d.state.users) >= maxUsers {
		return refuse(ErrFull, "there are %d users", maxUsers)
	}
	u := User{ID: d.state.counters.User + 1, Login: login, Created: d.now}
	d.changes.Users = []User{u}
	d.changes.Counters.User = u.ID
	d.result.User = &u
	d.tell("user.create", u.ID.String())
	d.detail("login", login)
	return nil
}

func (d *decision) createKey(c CreateKey) error {
	k := Key{ID: c.ID, Hash: c.Hash, Reusable: c.Reusable, Ephemeral: c.Ephemeral, Created: d.now, Expires: c.Expires.UTC().Truncate(time.Millisecond)}
	switch {
	case c.ID == "" || len(c.ID) > 64 || c.Hash == KeyHash{}:
		return refuse(ErrInvalid, "a join key without id or secret")
	case d.state.Key(c.ID) != nil:
		return refuse(ErrExists, "the join key %s", c.ID)
	case (c.Login == "") == (len(c.Tags) == 0):
		return refuse(ErrInvalid, "a join key is for a user or for tags: name one of the two")
	case !d.now.Before(k.Expires):
		return refuse(ErrInvalid, "a join key that expires at once; give a positive expiry such as 1h")
	case k.Expires.Sub(d.now) > MaxKeyLifetime:
		return refuse(ErrInvalid, "a join key that holds longer than %d days", MaxKeyLifetime/(24*time.Hour))
	case len(d.state.keys) >= maxKeys:
		return refuse(ErrFull, "there are %d join keys", maxKeys)
	}
	owner := strings.Join(tagTexts(c.Tags), ",")
	if c.Login != "" {
		u := d.state.UserByLogin(c.Login)
		if u == nil {
			return refuse(ErrNotFound, "there is no user %s", cut(c.Login))
		}
		if !u.Suspended.IsZero() {
			return refuse(ErrSuspended, "%s; resume the user first", u.Login)
		}
		k.User, owner = u.ID, u.Login
	}
	var err error
	if k.Tags, err = normalTags(c.Tags); err != nil {
		return err
	}
	d.changes.Keys = []Key{k}
	d.result.Key = &k
	d.tell("key.create", k.ID)
	d.detail("for", owner)
	d.detail("reusable", strconv.FormatBool(k.Reusable))
	d.detail("ephemeral", strconv.FormatBool(k.Ephemeral))
	d.detail("expires", k.Expires.Format(time.RFC3339))
	return nil
}

// maxTags is how many tags a device may have: each is a label in every
// certificate of its.
const maxTags = 64

// normalTags returns the tags in ascending order without repeats.
func normalTags(tags []ident.Tag) ([]ident.Tag, error) {
	if len(tags) == 0 {
		return nil, nil
	}
	out := slices.Clone(tags)
	for _, t := range out {
		if !t.Valid() {
			return nil, refuse(ErrInvalid, "%q is not a tag such as tag:db", cut(string(t)))
		}
	}
	slices.Sort(out)
	if out = slices.Compact(out); len(out) > maxTags {
		return nil, refuse(ErrInvalid, "more than %d tags", maxTags)
	}
	return out, nil
}

func tagTexts(tags []ident.Tag) []string {
	var out []string
	for _, t := range tags {
		out = append(out, string(t))
	}
	return out
}

func (d *decision) revokeKey(c RevokeKey) error {
	old := d.state.Key(c.ID)
	if old == nil {
		return refuse(ErrNotFound, "there is no join key %s", cut(c.ID))
	}
	d.result.Key = old
	if !old.Revoked.IsZero() {
		return nil
	}
	k := *old
	k.Revoked = d.now
	d.changes.Keys = []Key{k}
	d.result.Key = &k
	d.tell("key.revoke", k.ID)
	return nil
}

// authKey returns the join key that is presented. The text of its error is for
// the operator: who presents the key is not told what is wrong with it.
func (d *decision) authKey(id string, secret KeyHash) (*Key, error) {
	k := d.state.Key(id)
	if k == nil {
		return nil, refuse(ErrAuthKey, "unknown")
	}
	if subtle.ConstantTimeCompare(k.Hash[:], secret[:]) != 1 {
		return nil, refuse(ErrAuthKey, "wrong secret for %s", k.ID)
	}
	if reason := k.Usable(d.now); reason != "" {
		return nil, refuse(ErrAuthKey, "%s is %s", k.ID, reason)
	}
	if d.state.Suspended(k.User) {
		return nil, refuse(ErrAuthKey, "%s is of the suspended user %v", k.ID, k.User)
	}
	return k, nil
}

func (d *decision) setPolicy(c SetPolicy) error {
	current := d.state.policy
	if c.If != 0 && c.If != current.Epoch {
		return refuse(ErrConflict, "the policy is at epoch %d, not %d; get it again", current.Epoch, c.If)
	}
	if len(c.Text) > MaxPolicy {
		return refuse(ErrInvalid, "a policy of %d bytes; at most %d are allowed", len(c.Text), MaxPolicy)
	}
	d.result.Policy = current
	if current.Epoch > 0 && c.Text == current.Text {
		return nil
	}
	p := Policy{Epoch: current.Epoch + 1, Text: c.Text, Set: d.now}
	d.changes.Policy = &p
	d.result.Policy = &p
	d.tell("policy.set", "")
	d.detail("epoch", strconv.FormatUint(uint64(p.Epoch), 10))
	d.detail("sha256", digest(c.Text))
	d.detail("sha256 before", digest(current.Text))
	return nil
}

func (d *decision) renewCertificates(c RenewCertificates) error {
	serial := d.state.counters.Serial
	for _, cert := range c.Certificates {
		serial++
		if cert.Serial != serial || len(cert.Signed) == 0 {
			return refuse(ErrConflict, "certificate %d where %d comes next", cert.Serial, serial)
		}
		if d.state.Device(cert.Node) == nil {
			return refuse(ErrNotFound, "a certificate for %v, which is no device", cert.Node)
		}
	}
	if len(c.Certificates) == 0 {
		return nil
	}
	d.changes.Certificates = slices.Clone(c.Certificates)
	d.changes.Counters.Serial = serial
	first := c.Certificates[0]
	d.tell("certificate.issue", first.Node.String())
	d.detail("serial", strconv.FormatUint(first.Serial, 10))
	if n := len(c.Certificates); n > 1 {
		d.entry.Target = ""
		d.detail("count", strconv.Itoa(n))
	}
	var all []byte
	for _, cert := range c.Certificates {
		all = append(all, cert.Signed...)
	}
	d.detail("sha256", digest(string(all)))
	return nil
}

func (d *decision) removeExpired(c RemoveExpired) {
	for _, id := range slices.Sorted(maps.Keys(c.OfflineSince)) {
		device := d.state.Device(id)
		if device == nil || !device.Ephemeral || d.now.Sub(c.OfflineSince[id]) < EphemeralGrace {
			continue
		}
		if len(d.changes.Removed) == maxRemoved {
			break
		}
		d.drop(device)
		d.detail("device", device.ID.String()+" "+device.Name)
	}
	if len(d.changes.Removed) > 0 {
		d.tell("device.expire", "")
	}
}

func (d *decision) pruneKeys() {
	used := make(map[string]bool)
	for _, device := range d.state.Devices() {
		used[device.Key] = true
	}
	for _, k := range d.state.Keys() {
		if len(d.changes.RemovedKeys) == maxRemoved {
			break
		}
		if !used[k.ID] && k.over(d.now.Add(-KeyGrace)) {
			d.changes.RemovedKeys = append(d.changes.RemovedKeys, k.ID)
			d.detail("key", k.ID)
		}
	}
	if len(d.changes.RemovedKeys) > 0 {
		d.tell("key.prune", "")
	}
}

// drop takes a device out of the network.
func (d *decision) drop(device *Device) {
	d.changes.Removed = append(d.changes.Removed, device.ID)
	d.result.Revoked = append(d.result.Revoked, device.NodeKey)
}
