package partnertest

import (
	"net/http"
	"slices"
	"strconv"
	"time"
)

// Ndovu is a stand-in for the investment partner.
type Ndovu struct {
	*Server
}

// StartNdovu starts an Ndovu on a socket. The caller must close it.
func StartNdovu(o Options) *Ndovu {
	n := NewNdovu(o)
	n.listen()
	return n
}

// NewNdovu returns an Ndovu in memory. Requests reach it through RoundTrip.
func NewNdovu(o Options) *Ndovu {
	o.Lifetime = or(o.Lifetime, time.Hour)
	n := &Ndovu{newServer(o, "/api/v3/partners/auth")}
	n.endpoint("POST /api/v3/partners/auth", n.logIn)
	n.endpoint("GET /api/v3/partners/{shortName}/plans", n.listPlans)
	return n
}

// SetClientSecret changes the secret that a login needs. Tokens stay good.
func (n *Ndovu) SetClientSecret(secret string) {
	n.note(func() { n.opts.ClientSecret = secret })
}

func (n *Ndovu) logIn(w http.ResponseWriter, r *http.Request) {
	_, typed := r.Header["Content-Type"]
	if r.ContentLength != 0 || typed {
		say(w, http.StatusBadRequest, "No request body is required or accepted")
		return
	}
	id, secret, ok := r.BasicAuth()
	if !ok || len(r.Header["Authorization"]) != 1 {
		say(w, http.StatusBadRequest, "Missing or malformed Authorization header")
		return
	}
	if id != n.opts.ClientID || secret != read(n.Server, func() string { return n.opts.ClientSecret }) {
		say(w, http.StatusUnauthorized, "Invalid client credentials")
		return
	}
	n.note(func() { n.logins++ })
	token, _ := n.vault.issue(id)
	writeJSON(w, http.StatusOK, struct {
		AccessToken string  `json:"access_token"`
		ExpiresIn   float64 `json:"expires_in"`
		TokenType   string  `json:"token_type"`
	}{token, n.opts.Lifetime.Seconds(), "Bearer"})
}

func (n *Ndovu) listPlans(w http.ResponseWriter, r *http.Request) {
	if n.vault.bearer(r) == nil {
		say(w, http.StatusUnauthorized, "Unauthorized")
		return
	}
	if r.PathValue("shortName") != n.opts.ShortName {
		say(w, http.StatusForbidden, "Forbidden")
		return
	}
	q := r.URL.Query()
	category, err := strconv.Atoi(or(q.Get("categoryId"), "0"))
	if err != nil {
		say(w, http.StatusBadRequest, "categoryId must be a number")
		return
	}
	currency, fundType := q.Get("currency"), q.Get("fundType")
	if !slices.Contains([]string{"", "KES", "USD"}, currency) {
		say(w, http.StatusBadRequest, "currency must be KES or USD")
		return
	}
	found := slices.DeleteFunc(slices.Clone(plans), func(p plan) bool {
		return category != 0 && category != p.category || currency != "" && currency != p.Currency || fundType != "" && fundType != p.FundType
	})
	var out struct {
		Message string `json:"message"`
		Data    struct {
			Total int    `json:"total"`
			Plans []plan `json:"plans"`
		} `json:"data"`
	}
	out.Message, out.Data.Total, out.Data.Plans = "Plans fetched successfully", len(found), found
	writeJSON(w, http.StatusOK, out)
}

type plan struct {
	category int // a filter; answers do not contain it

	ID                    int                `json:"id"`
	Identifier            string             `json:"identifier"`
	Name                  string             `json:"name"`
	CoolName              string             `json:"coolName"`
	About                 string             `json:"about"`
	Hint                  string             `json:"hint"`
	ImageURL              string             `json:"imageUrl"`
	Thumbnail             string             `json:"thumbnail"`
	Sector                string             `json:"sector"`
	FundType              string             `json:"fundType"`
	ProfitType            string             `json:"profitType"`
	ProfitTypeDescription string             `json:"profitTypeDescription"`
	Performance1          *float64           `json:"performance1"`
	Performance3          *float64           `json:"performance3"`
	Performance5          *float64           `json:"performance5"`
	Performance10         *float64           `json:"performance10"`
	PerformanceDate       string             `json:"performanceDate"`
	Currency              string             `json:"currency"`
	MinInvestableAmounts  map[string]float64 `json:"minInvestableAmounts"`
	MinTopUpAmounts       map[string]float64 `json:"minTopUpAmounts"`
	Tenor                 string             `json:"tenor"`
	LockInPeriod          int                `json:"lockInPeriod"`
	PartialWithdrawable   bool               `json:"partialWithdrawable"`
	FactSheet             *string            `json:"factSheet"`
	Prospectus            *string            `json:"prospectus"`
}

// plans are made up. Their fields are those of the partner's page.
var plans = []plan{
	newPlan(101, 1, "money-market-kes", "Money Market Fund", "Rainy Day", "Fixed income", "MONEY_MARKET", "KES", 1000, 500, 11.2, 0),
	newPlan(102, 1, "money-market-usd", "Dollar Money Market Fund", "Dollar Buffer", "Fixed income", "MONEY_MARKET", "USD", 10, 5, 5.4, 0),
	newPlan(103, 2, "fixed-income-kes", "Fixed Income Fund", "Steady Climb", "Government bonds", "FIXED_INCOME", "KES", 5000, 1000, 13.1, 12),
	newPlan(104, 3, "global-equity-usd", "Global Equity Fund", "World Tour", "Global equities", "EQUITY", "USD", 50, 25, 9.7, 0),
	newPlan(105, 3, "nairobi-equity-kes", "Nairobi Equity Fund", "Home Game", "Kenyan equities", "EQUITY", "KES", 2500, 500, 7.9, 6),
}

func newPlan(id, category int, identifier, name, coolName, sector, fundType, currency string, least, topUp, yield float64, lockIn int) plan {
	p := plan{
		category: category, ID: id, Identifier: identifier, Name: name, CoolName: coolName, Sector: sector, FundType: fundType, Currency: currency,
		About:      name + " invests in " + sector + ".",
		Hint:       "Start with " + strconv.FormatFloat(least, 'f', -1, 64) + " " + currency,
		ImageURL:   "https://cdn.example.com/plans/" + identifier + ".png",
		Thumbnail:  "https://cdn.example.com/plans/" + identifier + "-small.png",
		ProfitType: "INTEREST", ProfitTypeDescription: "Interest accrues daily and is paid monthly",
		Performance1: new(yield), Performance3: new(yield - 0.5), Performance5: new(yield - 0.8),
		PerformanceDate:      "2026-06-30",
		MinInvestableAmounts: map[string]float64{currency: least},
		MinTopUpAmounts:      map[string]float64{currency: topUp},
		PartialWithdrawable:  lockIn == 0,
		Tenor:                "Open-ended", LockInPeriod: lockIn,
		FactSheet: new("https://cdn.example.com/plans/" + identifier + ".pdf"),
	}
	if fundType == "EQUITY" {
		p.ProfitType, p.ProfitTypeDescription = "CAPITAL_GAIN", "The value of the units rises and falls"
	}
	if lockIn > 0 {
		p.Tenor = strconv.Itoa(lockIn) + " months"
	}
	return p
}

func say(w http.ResponseWriter, status int, message string) {
	writeJSON(w, status, struct {
		Message string `json:"message"`
	}{message})
}
