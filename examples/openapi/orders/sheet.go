package main

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"net/mail"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/partnerauth/partnerauth/examples/openapi/nowpost"
)

// row is one order of the sheet.
type row struct {
	line  int
	order nowpost.NewOrder
}

// badLine is a line that is no order.
type badLine struct {
	line int
	err  error
}

// columns are those of the sheet, in any order; others are left alone.
var columns = []string{"partner_order_id", "pudo_point_id", "name", "email", "phone", "item", "qty", "price", "weight_kg"}

// readSheet reads a CSV with one order in each line, below a line with the columns' names. A line that is no order is
// set aside. A quoted field cannot hold a line break: then a quote that was left open spoils its own line alone, and
// not all that follow.
func readSheet(r io.Reader) (rows []row, bad []badLine, err error) {
	var header map[string]int
	seen := map[string]int{} // partner_order_id: line
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		text := lines.Text()
		if n == 1 {
			text = strings.TrimPrefix(text, "\ufeff") // spreadsheets put it there
		}
		if strings.TrimSpace(text) == "" {
			continue
		}
		fields, err := split(text)
		if header == nil {
			if err == nil {
				header, err = readHeader(fields)
			}
			if err != nil {
				return nil, nil, fmt.Errorf("line %d: %w", n, err)
			}
			continue
		}
		var order nowpost.NewOrder
		if err == nil {
			order, err = readOrder(header, fields)
		}
		if first, ok := seen[order.PartnerOrderID]; err == nil && ok {
			err = fmt.Errorf("partner_order_id %q is in line %d already", order.PartnerOrderID, first)
		}
		if err != nil {
			bad = append(bad, badLine{n, err})
			continue
		}
		seen[order.PartnerOrderID] = n
		rows = append(rows, row{n, order})
	}
	if err := lines.Err(); err != nil {
		return nil, nil, err
	}
	if header == nil {
		return nil, nil, errors.New("the sheet is empty")
	}
	return rows, bad, nil
}

func split(line string) ([]string, error) {
	if !utf8.ValidString(line) {
		return nil, errors.New("not UTF-8: save the sheet as CSV UTF-8")
	}
	fields, err := csv.NewReader(strings.NewReader(line)).Read()
	if parse, ok := errors.AsType[*csv.ParseError](err); ok {
		return nil, fmt.Errorf("column %d: %w", parse.Column, parse.Err) // its own line number is always 1
	}
	return fields, err
}

func readHeader(fields []string) (map[string]int, error) {
	at := map[string]int{}
	for i, name := range fields {
		at[strings.ToLower(strings.TrimSpace(name))] = i
	}
	missing := slices.DeleteFunc(slices.Clone(columns), func(name string) bool { _, ok := at[name]; return ok })
	if len(missing) > 0 {
		return nil, fmt.Errorf("no column %s", strings.Join(missing, ", "))
	}
	return at, nil
}

func readOrder(header map[string]int, fields []string) (nowpost.NewOrder, error) {
	if len(fields) != len(header) {
		return nowpost.NewOrder{}, fmt.Errorf("%d fields in place of %d", len(fields), len(header))
	}
	var problems []error
	text := func(name string) string {
		v := strings.TrimSpace(fields[header[name]])
		if v == "" {
			problems = append(problems, fmt.Errorf("%s is empty", name))
		}
		return v
	}
	number := func(name string) float64 {
		v := text(name)
		f, err := strconv.ParseFloat(v, 64)
		if v != "" && (err != nil || f < 0 || math.IsInf(f, 0) || math.IsNaN(f)) {
			problems = append(problems, fmt.Errorf("%s %q is not a number from 0", name, v))
		}
		return f
	}
	count := func(name string) int {
		v := text(name)
		i, err := strconv.Atoi(v)
		if v != "" && (err != nil || i < 1) {
			problems = append(problems, fmt.Errorf("%s %q is not a whole number from 1", name, v))
		}
		return i
	}
	order := nowpost.NewOrder{
		PartnerOrderID: text("partner_order_id"),
		PudoPointID:    text("pudo_point_id"),
		Customer:       nowpost.Customer{Name: text("name"), Email: text("email"), Phone: text("phone")},
		Items:          []nowpost.Item{{Name: text("item"), Qty: count("qty"), Price: number("price"), WeightKg: number("weight_kg")}},
	}
	if _, err := mail.ParseAddress(order.Customer.Email); err != nil && order.Customer.Email != "" {
		problems = append(problems, fmt.Errorf("email %q is not an address", order.Customer.Email))
	}
	return order, join(problems)
}

// join puts several errors into one line.
func join(problems []error) error {
	if len(problems) == 0 {
		return nil
	}
	texts := make([]string, len(problems))
	for i, p := range problems {
		texts[i] = p.Error()
	}
	return errors.New(strings.Join(texts, "; "))
}
