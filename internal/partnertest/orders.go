package partnertest

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Order is an order as NowPost keeps it.
type Order struct {
	ID             string    `json:"id"`
	TrackingCode   string    `json:"tracking_code"`
	Status         string    `json:"status"`
	LabelURL       string    `json:"label_url"`
	PartnerOrderID string    `json:"partner_order_id"`
	PudoPointID    string    `json:"pudo_point_id"`
	Customer       Customer  `json:"customer"`
	Items          []Item    `json:"items"`
	WebhookURL     string    `json:"webhook_url,omitempty"`
	CreatedAt      time.Time `json:"created_at"`
	UpdatedAt      time.Time `json:"updated_at"`
}

// Customer is who collects the parcel.
type Customer struct {
	Name  string `json:"name"`
	Email string `json:"email"`
	Phone string `json:"phone"`
}

// Item is one line of an order.
type Item struct {
	Name     string  `json:"name"`
	Qty      int     `json:"qty"`
	Price    float64 `json:"price"`
	WeightKg float64 `json:"weight_kg"`
}

// An orderBook has the orders in the sequence of their creation.
type orderBook struct {
	mu   sync.Mutex
	list []*Order
}

// Orders returns all orders, oldest first.
func (n *NowPost) Orders() []Order {
	n.orders.mu.Lock()
	defer n.orders.mu.Unlock()
	all := make([]Order, len(n.orders.list))
	for i, o := range n.orders.list {
		all[i] = *o
	}
	return all
}

// Created returns how many orders were created with a partner_order_id. It is 1
// if the client works.
func (n *NowPost) Created(partnerOrderID string) int {
	created := 0
	for _, o := range n.Orders() {
		if o.PartnerOrderID == partnerOrderID {
			created++
		}
	}
	return created
}

// createOrder does not recognise a partner_order_id, so a request that is sent
// twice makes two orders.
func (n *NowPost) createOrder(w http.ResponseWriter, r *http.Request) {
	var in Order
	if !readJSON(w, r, &in) {
		return
	}
	if in.PartnerOrderID == "" || in.PudoPointID == "" || in.Customer.Name == "" || len(in.Items) == 0 ||
		slices.ContainsFunc(in.Items, func(i Item) bool { return i.Name == "" || i.Qty < 1 || i.Price < 0 || i.WeightKg < 0 }) {
		fail(w, http.StatusBadRequest, "partner_order_id, pudo_point_id, customer and items are required")
		return
	}
	n.orders.mu.Lock()
	serial := len(n.orders.list) + 1
	in.ID, in.TrackingCode, in.Status = fmt.Sprintf("ord_%06d", serial), fmt.Sprintf("NP%08d", serial), "created"
	in.LabelURL = n.URL + "/labels/" + in.TrackingCode + ".pdf"
	in.CreatedAt = n.opts.Now().UTC()
	in.UpdatedAt = in.CreatedAt
	n.orders.list = append(n.orders.list, &in)
	n.orders.mu.Unlock()
	succeed(w, http.StatusCreated, struct {
		ID           string `json:"id"`
		TrackingCode string `json:"tracking_code"`
		Status       string `json:"status"`
		LabelURL     string `json:"label_url"`
	}{in.ID, in.TrackingCode, "created", in.LabelURL})
}

func (n *NowPost) showOrder(w http.ResponseWriter, r *http.Request) {
	n.orders.mu.Lock()
	defer n.orders.mu.Unlock()
	if o := n.orders.find(w, r); o != nil {
		succeed(w, http.StatusOK, o)
	}
}

func (n *NowPost) cancelOrder(w http.ResponseWriter, r *http.Request) {
	n.orders.mu.Lock()
	defer n.orders.mu.Unlock()
	o := n.orders.find(w, r)
	switch {
	case o == nil:
	case o.Status != "created":
		fail(w, http.StatusConflict, "Only an order that was just created can be cancelled")
	default:
		o.Status, o.UpdatedAt = "cancelled", n.opts.Now().UTC()
		succeed(w, http.StatusOK, o)
	}
}

// find returns the order that a path names by id or tracking code. If there is
// none, it answers 404 and returns nil. b.mu must be held.
func (b *orderBook) find(w http.ResponseWriter, r *http.Request) *Order {
	name := r.PathValue("id")
	for _, o := range b.list {
		if o.ID == name || o.TrackingCode == name {
			return o
		}
	}
	fail(w, http.StatusNotFound, "Order not found")
	return nil
}

var statuses = []string{"created", "in_transit", "ready_for_pickup", "delivered", "cancelled", "returned"}

var orderings = map[string]func(a, b Order) int{
	"createdAt":      func(a, b Order) int { return a.CreatedAt.Compare(b.CreatedAt) },
	"updatedAt":      func(a, b Order) int { return a.UpdatedAt.Compare(b.UpdatedAt) },
	"status":         func(a, b Order) int { return cmp.Compare(a.Status, b.Status) },
	"trackingCode":   func(a, b Order) int { return cmp.Compare(a.TrackingCode, b.TrackingCode) },
	"partnerOrderId": func(a, b Order) int { return cmp.Compare(a.PartnerOrderID, b.PartnerOrderID) },
}

type pagination struct {
	Page        int  `json:"page"`
	PageSize    int  `json:"pageSize"`
	Total       int  `json:"total"`
	TotalPages  int  `json:"totalPages"`
	HasNext     bool `json:"hasNext"`
	HasPrevious bool `json:"hasPrevious"`
}

func (n *NowPost) listOrders(w http.ResponseWriter, r *http.Request) {
	q, err := parseListing(r.URL.Query())
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	found := slices.DeleteFunc(n.Orders(), func(o Order) bool { return !q.wants(o) })
	slices.SortStableFunc(found, func(a, b Order) int {
		if q.descending {
			a, b = b, a
		}
		// Orders created at the same instant are in the sequence of their ids.
		return cmp.Or(q.compare(a, b), cmp.Compare(a.ID, b.ID))
	})
	p := pagination{Page: q.page, PageSize: q.pageSize, Total: len(found)}
	p.TotalPages = (p.Total + p.PageSize - 1) / p.PageSize
	p.HasNext, p.HasPrevious = p.Page < p.TotalPages, p.Page > 1
	from := min((p.Page-1)*p.PageSize, p.Total)
	succeed(w, http.StatusOK, struct {
		Orders     []Order    `json:"orders"`
		Pagination pagination `json:"pagination"`
	}{found[from:min(from+p.PageSize, p.Total)], p})
}

// A listing has the parameters of a list request.
type listing struct {
	page, pageSize int
	search, status string
	compare        func(a, b Order) int
	descending     bool
	from, to       time.Time // zero: open; to is exclusive
}

func parseListing(q url.Values) (l listing, err error) {
	number := func(name string, otherwise, most int) int {
		v, e := strconv.Atoi(or(q.Get(name), strconv.Itoa(otherwise)))
		if e != nil || v < 1 || v > most {
			err = fmt.Errorf("%s must be a number from 1 to %d", name, most)
		}
		return v
	}
	// A date without a time is the beginning of that day or, as the end of a
	// range, the beginning of the next.
	date := func(name string, end time.Duration) time.Time {
		text := q.Get(name)
		if text == "" {
			return time.Time{}
		}
		if day, e := time.Parse(time.DateOnly, text); e == nil {
			return day.Add(end)
		}
		moment, e := time.Parse(time.RFC3339, text)
		if e != nil {
			err = fmt.Errorf("%s must be a date", name)
		} else if end > 0 {
			moment = moment.Add(1)
		}
		return moment
	}
	l.page, l.pageSize = number("page", 1, 1_000_000), number("pageSize", 20, 100)
	l.search, l.status = strings.ToLower(q.Get("search")), q.Get("status")
	l.compare = orderings[or(q.Get("sortBy"), "createdAt")]
	l.descending = q.Get("sortOrder") != "asc"
	l.from, l.to = date("dateFrom", 0), date("dateTo", 24*time.Hour)
	switch {
	case l.status != "" && !slices.Contains(statuses, l.status):
		err = fmt.Errorf("unknown status")
	case l.compare == nil:
		err = fmt.Errorf("unknown sortBy")
	case !slices.Contains([]string{"", "asc", "desc"}, q.Get("sortOrder")):
		err = fmt.Errorf("sortOrder must be asc or desc")
	}
	return l, err
}

func (l listing) wants(o Order) bool {
	text := strings.ToLower(strings.Join([]string{o.ID, o.TrackingCode, o.PartnerOrderID, o.Customer.Name, o.Customer.Email, o.Customer.Phone}, "\n"))
	return strings.Contains(text, l.search) &&
		(l.status == "" || l.status == o.Status) &&
		!o.CreatedAt.Before(l.from) && (l.to.IsZero() || o.CreatedAt.Before(l.to))
}

func succeed(w http.ResponseWriter, status int, data any) {
	writeJSON(w, status, struct {
		Status string `json:"status"`
		Data   any    `json:"data"`
	}{"success", data})
}
