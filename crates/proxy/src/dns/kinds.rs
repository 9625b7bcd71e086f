//! Names of the types of DNS questions, for metrics and the log: a fixed list, so that what pods ask cannot make series.
//!
//! Source: IANA, Domain Name System Parameters, resource record types.

/// Name of a type in upper and in lower case; those that are not listed share one.
pub(super) fn kind_name(kind: u16) -> (&'static str, &'static str) {
    match kind {
        1 => ("A", "a"),
        2 => ("NS", "ns"),
        5 => ("CNAME", "cname"),
        6 => ("SOA", "soa"),
        10 => ("NULL", "null"),
        12 => ("PTR", "ptr"),
        13 => ("HINFO", "hinfo"),
        15 => ("MX", "mx"),
        16 => ("TXT", "txt"),
        25 => ("KEY", "key"),
        24 => ("SIG", "sig"),
        28 => ("AAAA", "aaaa"),
        33 => ("SRV", "srv"),
        35 => ("NAPTR", "naptr"),
        37 => ("CERT", "cert"),
        39 => ("DNAME", "dname"),
        43 => ("DS", "ds"),
        44 => ("SSHFP", "sshfp"),
        46 => ("RRSIG", "rrsig"),
        47 => ("NSEC", "nsec"),
        48 => ("DNSKEY", "dnskey"),
        50 => ("NSEC3", "nsec3"),
        51 => ("NSEC3PARAM", "nsec3param"),
        52 => ("TLSA", "tlsa"),
        53 => ("SMIMEA", "smimea"),
        59 => ("CDS", "cds"),
        60 => ("CDNSKEY", "cdnskey"),
        61 => ("OPENPGPKEY", "openpgpkey"),
        62 => ("CSYNC", "csync"),
        64 => ("SVCB", "svcb"),
        65 => ("HTTPS", "https"),
        251 => ("IXFR", "ixfr"),
        252 => ("AXFR", "axfr"),
        255 => ("ANY", "any"),
        257 => ("CAA", "caa"),
        _ => ("UNKNOWN", "unknown"),
    }
}
