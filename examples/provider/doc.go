// Package provider shows two partners of one's own, each with a
// [partnerauth.Provider]. A copy of either file is a good start for another one.
//
// [Acme] signs in with JSON and expects its token in a header of its own. [Globex]
// uses OAuth 2.0 client credentials. Both get everything that NowPost and Ndovu
// have: one login for all callers, renewal ahead of expiry, recovery from a
// revoked token, a quota, spans and metrics. The tests run them against stand-ins
// of module partnertest.
package provider
