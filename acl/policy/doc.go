// Package policy reads, checks and formats the policy document: one HuJSON
// text (JSON with comments and trailing commas) that says who may reach what.
//
// The language is the one of the market leader's product, so that a file that
// an administrator already keeps can be brought along, and additions of ours
// as further keys: id, mode, notBefore, notAfter, schedule, action "deny",
// resources, sensitivity and jit. Everything that the text alone can decide is
// decided here, each error with its line, column, the offending text and what
// would be right. What needs to know users and devices is decided by package
// compile.
//
// The package is pure. A Document is immutable once parsed and safe for
// concurrent use. Text of any content is answered with a document or an error
// in time and memory proportional to its length, which is bounded (see the
// Max constants).
package policy
