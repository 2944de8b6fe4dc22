package openapi_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/partnerauth/partnerauth"
	"github.com/partnerauth/partnerauth/examples/openapi"
	"github.com/partnerauth/partnerauth/examples/openapi/contract"
	"github.com/partnerauth/partnerauth/examples/openapi/ndovu"
	"github.com/partnerauth/partnerauth/examples/openapi/nowpost"
	ogenndovu "github.com/partnerauth/partnerauth/examples/openapi/ogen/ndovu"
	ogennowpost "github.com/partnerauth/partnerauth/examples/openapi/ogen/nowpost"
	"github.com/partnerauth/partnerauth/internal/partnertest"
)

func TestDocuments(t *testing.T) {
	for _, tc := range []struct {
		name, baseURL string
		read          func() (*openapi3.T, error)
		operations    []string
	}{
		{"nowpost", partnerauth.NowPostBaseURL, openapi.NowPost, []string{
			"cancelOrder", "createAPIKey", "createOrder", "getOrder", "listOrders", "login", "refresh",
		}},
		{"ndovu", partnerauth.NdovuDevBaseURL, openapi.Ndovu, []string{"authenticate", "listPlans"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			doc, err := tc.read()
			if err != nil {
				t.Fatal(err)
			}
			if err := doc.Validate(t.Context()); err != nil {
				t.Error(err)
			}
			if got := doc.Servers[0].URL; got != tc.baseURL {
				t.Errorf("got server %s, want that of the package, %s", got, tc.baseURL)
			}
			var operations []string
			for _, item := range doc.Paths.Map() {
				for _, o := range item.Operations() {
					operations = append(operations, o.OperationID)
				}
			}
			slices.Sort(operations)
			if !slices.Equal(operations, tc.operations) {
				t.Errorf("got operations %q, want %q", operations, tc.operations)
			}
		})
	}
}

// shop returns a NowPost and an http.Client for it; the document is held against all that passes between the two.
func shop(t *testing.T, o partnertest.Options) (*partnertest.NowPost, *http.Client) {
	t.Helper()
	partner := partnertest.StartNowPost(o)
	t.Cleanup(partner.Close)
	account := partnerauth.NowPost{Email: partnertest.Email, Password: partnertest.Password, BaseURL: partner.URL}
	return partner, client(t, partner.Server, account.TokenSource(), openapi.NowPost)
}

// investor returns an Ndovu and an http.Client for it, likewise.
func investor(t *testing.T) (*partnertest.Ndovu, *http.Client) {
	t.Helper()
	partner := partnertest.StartNdovu(partnertest.Options{})
	t.Cleanup(partner.Close)
	account := partnerauth.Ndovu{ClientID: partnertest.ClientID, ClientSecret: partnertest.ClientSecret, BaseURL: partner.URL}
	return partner, client(t, partner.Server, account.TokenSource(), openapi.Ndovu)
}

func client(t *testing.T, partner *partnertest.Server, source *partnerauth.Source, document func() (*openapi3.T, error)) *http.Client {
	t.Helper()
	doc, err := document()
	if err != nil {
		t.Fatal(err)
	}
	base := partner.Transport()
	t.Cleanup(base.CloseIdleConnections)
	return &http.Client{Transport: &partnerauth.Transport{Source: source, Base: contract.Check(t, doc, base)}}
}

func newOrder(id string) nowpost.NewOrder {
	return nowpost.NewOrder{
		PartnerOrderID: id,
		PudoPointID:    "pudo_12345",
		Customer:       nowpost.Customer{Name: "Jane Doe", Email: "jane@example.com", Phone: "+2340000000000"},
		Items:          []nowpost.Item{{Name: "Kettle", Qty: 1, Price: 8200, WeightKg: 1.4}},
	}
}

func TestNowPostByOapiCodegen(t *testing.T) {
	partner, session := shop(t, partnertest.Options{})
	api, err := nowpost.NewClientWithResponses(partner.URL, nowpost.WithHTTPClient(session))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()

	var ids []string
	for i := range 5 {
		if i == 3 {
			partner.RevokeAll() // the next body is sent twice
		}
		made, err := api.CreateOrderWithResponse(ctx, newOrder(fmt.Sprint("A-", i)))
		if err != nil || made.JSON2XX == nil {
			t.Fatalf("got %v, %v; want an order", made, err)
		}
		ids = append(ids, made.JSON2XX.Data.ID)
	}
	if n := partner.Created("A-3"); n != 1 || partner.Status(http.StatusUnauthorized) != 1 {
		t.Errorf("got %d orders and %d times 401, want 1 of each", n, partner.Status(http.StatusUnauthorized))
	}

	var listed []string
	for page := 1; ; page++ {
		answer, err := api.ListOrdersWithResponse(ctx, &nowpost.ListOrdersParams{
			Page: &page, PageSize: new(2), Status: new(nowpost.OrderStatusCreated), SortBy: new("createdAt"),
			SortOrder: new(nowpost.ListOrdersParamsSortOrderAsc), DateFrom: new("2020-01-01"),
		})
		if err != nil || answer.JSON200 == nil {
			t.Fatalf("got %v, %v; want a page", answer, err)
		}
		for _, o := range answer.JSON200.Data.Orders {
			listed = append(listed, o.ID)
		}
		if !answer.JSON200.Data.Pagination.HasNext {
			break
		}
	}
	if !slices.Equal(listed, ids) {
		t.Errorf("got orders %q, want %q", listed, ids)
	}

	if cancelled, err := api.CancelOrderWithResponse(ctx, ids[0]); err != nil || cancelled.StatusCode() != http.StatusOK {
		t.Errorf("got %v, %v; want the order cancelled", cancelled, err)
	}
	one, err := api.GetOrderWithResponse(ctx, ids[0])
	if err != nil || one.JSON200 == nil || one.JSON200.Data.Status != nowpost.OrderStatusCancelled {
		t.Errorf("got %v, %v; want the cancelled order", one, err)
	}
	for id, want := range map[string]int{ids[0]: http.StatusConflict, "ord_none": http.StatusNotFound} {
		if again, err := api.CancelOrderWithResponse(ctx, id); err != nil || again.StatusCode() != want {
			t.Errorf("cancel %s: got %v, %v; want status %d", id, again, err, want)
		}
	}

	key, err := api.CreateAPIKeyWithResponse(ctx, nowpost.NewAPIKey{
		Name: "reports", Permissions: &[]string{"orders:read"}, ExpiresAt: new(time.Now().Add(time.Hour)),
	})
	if err != nil || key.JSON201 == nil || key.JSON201.KeyString == "" {
		t.Errorf("got %v, %v; want a key", key, err)
	}
	if nameless, err := api.CreateAPIKeyWithResponse(ctx, nowpost.NewAPIKey{}); err != nil || nameless.StatusCode() != http.StatusBadRequest {
		t.Errorf("got %v, %v; want 400 for a key without a name", nameless, err)
	}
}

// bearer satisfies ogen's want of a token. partnerauth puts the real one in its place.
type bearer struct{}

func (bearer) Bearer(context.Context, ogennowpost.OperationName) (ogennowpost.Bearer, error) {
	return ogennowpost.Bearer{}, nil
}

func TestNowPostByOgen(t *testing.T) {
	partner, session := shop(t, partnertest.Options{})
	api, err := ogennowpost.NewClient(partner.URL, bearer{}, ogennowpost.WithClient(session))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	order := &ogennowpost.NewOrder{
		PartnerOrderID: "A-1",
		PudoPointID:    "pudo_12345",
		Customer:       ogennowpost.Customer{Name: "Jane Doe", Email: "jane@example.com", Phone: "+2340000000000"},
		Items:          []ogennowpost.Item{{Name: "Kettle", Qty: 1, Price: 8200, WeightKg: 1.4}},
	}
	if _, err := api.CreateOrder(ctx, order); err != nil {
		t.Fatal(err)
	}
	partner.RevokeAll()
	order.PartnerOrderID = "A-2"
	made, err := api.CreateOrder(ctx, order)
	if err != nil {
		t.Fatal(err)
	}
	answer, ok := made.(*ogennowpost.OrderAnswerStatusCode)
	if !ok || partner.Created("A-2") != 1 || partner.Status(http.StatusUnauthorized) != 1 {
		t.Fatalf("got %T, %d orders, %d times 401; want an order after one 401", made, partner.Created("A-2"), partner.Status(http.StatusUnauthorized))
	}
	id := answer.Response.Data.ID

	listed, err := api.ListOrders(ctx, ogennowpost.ListOrdersParams{
		PageSize: ogennowpost.NewOptInt(1), Search: ogennowpost.NewOptString("A-"),
	})
	page, ok := listed.(*ogennowpost.OrderPage)
	if err != nil || !ok || len(page.Data.Orders) != 1 || !page.Data.Pagination.HasNext || page.Data.Pagination.Total != 2 {
		t.Errorf("got %+v, %v; want one order of two", listed, err)
	}
	if cancelled, err := api.CancelOrder(ctx, ogennowpost.CancelOrderParams{ID: id}); err != nil {
		t.Errorf("got %+v, %v; want the order cancelled", cancelled, err)
	}
	shown, err := api.GetOrder(ctx, ogennowpost.GetOrderParams{ID: id})
	if one, ok := shown.(*ogennowpost.OrderAnswer); err != nil || !ok || one.Data.Status != ogennowpost.OrderStatusCancelled {
		t.Errorf("got %+v, %v; want the cancelled order", shown, err)
	}
	none, err := api.GetOrder(ctx, ogennowpost.GetOrderParams{ID: "none"})
	if _, ok := none.(*ogennowpost.NotFound); err != nil || !ok {
		t.Errorf("got %+v, %v; want NotFound", none, err)
	}
	made2, err := api.CreateAPIKey(ctx, &ogennowpost.NewAPIKey{Name: "reports", Permissions: []string{"orders:read"}})
	if key, ok := made2.(*ogennowpost.APIKeyAnswer); err != nil || !ok || key.KeyString == "" {
		t.Errorf("got %+v, %v; want a key", made2, err)
	}
}

func TestNdovuByOapiCodegen(t *testing.T) {
	partner, session := investor(t)
	api, err := ndovu.NewClientWithResponses(partner.URL, ndovu.WithHTTPClient(session))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		params ndovu.ListPlansParams
		want   int
	}{
		{"all", ndovu.ListPlansParams{}, 5},
		{"currency", ndovu.ListPlansParams{Currency: new("USD")}, 2},
		{"category", ndovu.ListPlansParams{CategoryID: new(1)}, 2},
		{"type and currency", ndovu.ListPlansParams{FundType: new("EQUITY"), Currency: new("KES")}, 1},
		{"none", ndovu.ListPlansParams{FundType: new("BOND")}, 0},
	} {
		partner.RevokeAll()
		plans, err := api.ListPlansWithResponse(t.Context(), "acme", &tc.params)
		if err != nil || plans.JSON200 == nil || plans.JSON200.Data.Total != tc.want || len(plans.JSON200.Data.Plans) != tc.want {
			t.Errorf("%s: got %v, %v; want %d plans", tc.name, plans, err, tc.want)
		}
	}
	if other, err := api.ListPlansWithResponse(t.Context(), "globex", nil); err != nil || other.StatusCode() != http.StatusForbidden {
		t.Errorf("got %v, %v; want 403 for another partner", other, err)
	}
}

// ndovuBearer is the same for Ndovu.
type ndovuBearer struct{}

func (ndovuBearer) Bearer(context.Context, ogenndovu.OperationName) (ogenndovu.Bearer, error) {
	return ogenndovu.Bearer{}, nil
}

func TestNdovuByOgen(t *testing.T) {
	partner, session := investor(t)
	api, err := ogenndovu.NewClient(partner.URL, ndovuBearer{}, ogenndovu.WithClient(session))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := api.ListPlans(t.Context(), ogenndovu.ListPlansParams{ShortName: "acme", Currency: ogenndovu.NewOptString("USD")})
	if plans, ok := answer.(*ogenndovu.PlansAnswer); err != nil || !ok || len(plans.Data.Plans) != 2 {
		t.Errorf("got %+v, %v; want two plans", answer, err)
	}
	answer, err = api.ListPlans(t.Context(), ogenndovu.ListPlansParams{ShortName: "globex"})
	if _, ok := answer.(*ogenndovu.ListPlansForbidden); err != nil || !ok {
		t.Errorf("got %+v, %v; want Forbidden", answer, err)
	}
}

// Both kinds of generated client let partnerauth's errors through to errors.As and errors.Is.
func TestErrorsThroughGeneratedClients(t *testing.T) {
	partner := partnertest.StartNowPost(partnertest.Options{})
	t.Cleanup(partner.Close)
	wrong := partnerauth.NowPost{Email: partnertest.Email, Password: "wrong", BaseURL: partner.URL}.Client()
	one, err := nowpost.NewClientWithResponses(partner.URL, nowpost.WithHTTPClient(wrong))
	if err != nil {
		t.Fatal(err)
	}
	other, err := ogennowpost.NewClient(partner.URL, bearer{}, ogennowpost.WithClient(wrong))
	if err != nil {
		t.Fatal(err)
	}
	_, oneErr := one.GetOrderWithResponse(t.Context(), "1")
	_, otherErr := other.GetOrder(t.Context(), ogennowpost.GetOrderParams{ID: "1"})
	for name, err := range map[string]error{"oapi-codegen": oneErr, "ogen": otherErr} {
		var auth *partnerauth.AuthError
		if !errors.Is(err, partnerauth.ErrCredentials) || !errors.As(err, &auth) || auth.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: got %v, want an AuthError with status 401", name, err)
		}
	}
}
