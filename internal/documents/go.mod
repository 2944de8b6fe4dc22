module github.com/partnerauth/partnerauth/internal/documents

go 1.26.0
