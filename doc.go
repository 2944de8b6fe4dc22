// Package partnerauth provides an http.RoundTripper for partner APIs that hand out
// short-lived tokens and limit requests: [Transport] signs in, renews the token, stays
// under the limit, recovers from revoked tokens, and traces every request.
//
//	shop, err := partnerauth.NowPostFromEnv() // NOWPOST_EMAIL and NOWPOST_PASSWORD
//	if err != nil {
//		return err
//	}
//	client := shop.Client()
//	client.Timeout = time.Minute // waiting for the quota counts
//	resp, err := client.Get(shop.BaseURL + "/api/v1/orders")
//
// Most programs make one client for each account, as above, and share it. [NowPost] and
// [Ndovu] are built in; describe any other partner with a [Provider]. To choose a proxy,
// a [Quota] or telemetry, make a [Transport] with the account's TokenSource. Test errors
// for [ErrCredentials], [ErrRateLimited] and [AuthError].
//
// Zero values mean the stated defaults, everything is safe for concurrent use, and
// nothing has to be closed. The package does not log or write to disk. The quota counts
// what this process sends; module partnerredis shares it, and the token, among processes.
// Module partnertest has stand-ins for your tests.
//
// Recipes, all metrics and spans, and what to do about each error:
// https://github.com/partnerauth/partnerauth#configure
package partnerauth
