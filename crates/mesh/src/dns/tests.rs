//! Tables of cases: dns.md, sections 3 to 5 and 9.
