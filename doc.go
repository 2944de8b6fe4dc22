// Package partnerauth makes any http.Client speak to the NowPost and Ndovu
// partner APIs: signed in, inside 100 requests a minute, and traced.
//
//	shop, err := partnerauth.NowPostFromEnv()
//	if err != nil {
//		return err
//	}
//	client := shop.Client()
//	resp, err := client.Get(shop.BaseURL + "/api/v1/orders")
//
// A [Source] holds one account's token. It signs in when the first token is
// asked for, renews it in the background before it ends, and lets one fetch
// serve all who wait. A [Transport] puts that token on requests to the pinned
// origins and nowhere else, waits its turn in a [Quota], and opens a span for
// every step. When the partner answers 401, it forgets the token that was
// rejected, signs in once for everybody, and sends the request once more.
//
// A request is only sent again if its body can be had again: without a body,
// or with http.Request.GetBody, which http.NewRequest sets for the readers of
// package bytes and strings. Otherwise the caller gets the 401.
//
// The quota is kept per process, since its start. Several processes share one, and
// one token, by module partnerredis; the runs of a command-line program share a
// token by partnerfile. Module partnertest stands in for both partners in your
// tests. They lie in directories of these names beside this package.
//
// The span of an attempt ends when its headers are in. A response body is not
// wrapped, so a body that is never closed loses no telemetry.
//
// Zero values mean the documented defaults, everything is safe for concurrent
// use, and nothing has to be closed.
package partnerauth
