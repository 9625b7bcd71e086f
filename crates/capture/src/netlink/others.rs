//! Rules and routes of others that stand in the way of capture's. Pure.
//!
//! - A route of capture's table that is not capture's, and a rule that looks into that table and is not capture's, can only do
//!   harm: they are strays, and removed.
//! - A rule before capture's that may fit captured packets is somebody's wish: it is left, and told.
//!
//! Nothing of it lets anything out in the clear: what is captured leaves over loopback only, see the kernel's guard.

use redirect_common::{DAEMON_MARK, PREF_DNS, REDIRECT_MARK, TABLE};

use super::{
    FR_ACT_TO_TBL, FRA_DPORT_RANGE, FRA_FWMARK, FRA_FWMASK, FRA_IIFNAME, FRA_IP_PROTO,
    FRA_PRIORITY, FRA_TABLE, RTA_DST, RTA_TABLE, RTM_DELROUTE, RTM_DELRULE, Route, Rule, Table,
    find, ip_of, u32_of,
};

const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_TUN_ID: u16 = 12;
const FRA_SUPPRESS_IFGROUP: u16 = 13;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_OIFNAME: u16 = 17;
const FRA_L3MDEV: u16 = 19;
const FRA_UID_RANGE: u16 = 20;
const FRA_SPORT_RANGE: u16 = 23;
/// The first selector that came after those above (`FRA_DSCP`, `FRA_FLOWLABEL`): what follows is one as well, as far as it is known.
const FRA_LATER: u16 = 25;
const FRA_SPORT_MASK: u16 = 28;
const FRA_DPORT_MASK: u16 = 29;
/// `FIB_RULE_INVERT`: the rule fits what its selectors do not.
const INVERT: u32 = 2;
/// `RT_TABLE_LOCAL`, which the kernel's own first rule looks into.
const TABLE_LOCAL: u32 = 255;
/// `RTM_F_CLONED`: an entry of a cache, not of a table.
const CLONED: u32 = 0x200;

/// Strays of one table that are dealt with at one time; more are found at the next look.
const STRAYS_MAX: usize = 64;
/// Rules of others before capture's that are told.
const FOREIGN_MAX: usize = 16;

/// Something that stands where only capture's may stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stray {
    /// Type of the request that removes it.
    pub removal: u16,
    /// Its body, as the kernel showed it.
    pub body: Vec<u8>,
    /// What it is, for a human.
    pub text: String,
}

impl<T> Table<T> {
    fn stray(&mut self, stray: Stray) {
        if self.strays.len() < STRAYS_MAX {
            self.strays.push(stray);
        }
    }
}

/// Attributes that make a rule fit less than all packets, its inversion as 0.
pub(super) fn narrowed_by(body: &[u8]) -> Vec<u16> {
    let attributes = body.get(12..).unwrap_or_default();
    let number = |kind| find(attributes, kind).and_then(u32_of);
    let selectors = [
        FRA_DST,
        FRA_SRC,
        FRA_IIFNAME,
        FRA_FWMARK,
        FRA_TUN_ID,
        FRA_OIFNAME,
        FRA_UID_RANGE,
        FRA_IP_PROTO,
        FRA_SPORT_RANGE,
        FRA_DPORT_RANGE,
    ];
    let later = FRA_LATER..FRA_SPORT_MASK;
    let mut found: Vec<u16> = selectors
        .into_iter()
        .chain(later)
        .filter(|kind| find(attributes, *kind).is_some())
        .collect();
    // these are shown always, with a value that means nothing
    let suppress = [FRA_SUPPRESS_IFGROUP, FRA_SUPPRESS_PREFIXLEN];
    found.extend(
        suppress
            .into_iter()
            .filter(|kind| number(*kind).is_some_and(|value| value != u32::MAX)),
    );
    // a single port is shown with the mask of all bits
    let masks = [FRA_SPORT_MASK, FRA_DPORT_MASK];
    found.extend(
        masks
            .into_iter()
            .filter(|kind| find(attributes, *kind).is_some_and(|mask| mask != [0xff; 2])),
    );
    if find(attributes, FRA_L3MDEV).is_some_and(|value| value != [0]) {
        found.push(FRA_L3MDEV);
    }
    if body.get(8..12).and_then(u32_of).unwrap_or_default() & INVERT != 0 {
        found.push(0);
    }
    found
}

/// Puts a rule that is not capture's where it belongs.
pub(super) fn sort_rule(body: Vec<u8>, found: &mut Table<Rule>) {
    let attributes = body.get(12..).unwrap_or_default();
    let number = |kind| find(attributes, kind).and_then(u32_of);
    let (priority, table) = (
        number(FRA_PRIORITY).unwrap_or_default(),
        number(FRA_TABLE).unwrap_or_default(),
    );
    let family = family_of(&body);
    let action = body.get(7).copied().unwrap_or_default();
    let text = format!("{family} rule {priority} of another (action {action}, table {table})");
    if action == FR_ACT_TO_TBL && table == TABLE {
        let removal = RTM_DELRULE;
        found.stray(Stray {
            removal,
            body,
            text,
        });
        return;
    }
    let kernels_own = priority == 0
        && action == FR_ACT_TO_TBL
        && table == TABLE_LOCAL
        && narrowed_by(&body).is_empty();
    if priority <= PREF_DNS && !kernels_own && may_fit(&body) && found.foreign.len() < FOREIGN_MAX {
        found
            .foreign
            .insert(format!("{text} comes before capture's"));
    }
}

/// Whether a rule may fit packets with capture's marks.
fn may_fit(body: &[u8]) -> bool {
    let attributes = body.get(12..).unwrap_or_default();
    let number = |kind| find(attributes, kind).and_then(u32_of);
    let Some(mark) = number(FRA_FWMARK) else {
        return true;
    };
    let mask = number(FRA_FWMASK).unwrap_or(u32::MAX);
    narrowed_by(body).contains(&0)
        || [REDIRECT_MARK, DAEMON_MARK]
            .iter()
            .any(|ours| (ours ^ mark) & mask == 0)
}

/// Puts a route that has not capture's form where it belongs; those of other tables do not concern capture.
pub(super) fn sort_route(body: Vec<u8>, found: &mut Table<Route>) {
    let attributes = body.get(12..).unwrap_or_default();
    let table = find(attributes, RTA_TABLE).and_then(u32_of);
    let flags = body.get(8..12).and_then(u32_of).unwrap_or_default();
    if table != Some(TABLE) || flags & CLONED != 0 {
        return;
    }
    let to = find(attributes, RTA_DST).and_then(ip_of);
    let to = to.map_or_else(|| "default".to_owned(), |ip| ip.to_string());
    let text = format!(
        "{} route {to}/{} of another (type {})",
        family_of(&body),
        body[1],
        body[7]
    );
    found.stray(Stray {
        removal: RTM_DELROUTE,
        body,
        text,
    });
}

fn family_of(body: &[u8]) -> &'static str {
    match body.first().map(|family| i32::from(*family)) {
        Some(nix::libc::AF_INET) => "IPv4",
        Some(nix::libc::AF_INET6) => "IPv6",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Family, RTM_NEWRULE, attribute};
    use super::*;

    /// A rule with these attributes.
    fn rule(action: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![
            nix::libc::AF_INET as u8,
            0,
            0,
            0,
            0,
            0,
            0,
            action,
            0,
            0,
            0,
            0,
        ];
        for (kind, value) in attributes {
            attribute(&mut body, *kind, value);
        }
        body
    }

    fn sorted(body: Vec<u8>) -> (usize, usize) {
        let mut table = Table::default();
        sort_rule(body, &mut table);
        (table.strays.len(), table.foreign.len())
    }

    #[test]
    fn rules_of_others_are_told_by_what_they_can_do() {
        let pref = |number: u32| number.to_ne_bytes();
        let (main, ours) = (254u32.to_ne_bytes(), TABLE.to_ne_bytes());
        let mark = |mark: u32| mark.to_ne_bytes();
        let cases: [(Vec<u8>, (usize, usize)); 9] = [
            // the kernel's own
            (rule(1, &[(FRA_TABLE, &TABLE_LOCAL.to_ne_bytes())]), (0, 0)),
            (
                rule(1, &[(FRA_PRIORITY, &pref(32766)), (FRA_TABLE, &main)]),
                (0, 0),
            ),
            // before ours, fitting everything, or our mark
            (
                rule(1, &[(FRA_PRIORITY, &pref(50)), (FRA_TABLE, &main)]),
                (0, 1),
            ),
            (rule(6, &[(FRA_PRIORITY, &pref(50))]), (0, 1)),
            (
                rule(
                    1,
                    &[
                        (FRA_PRIORITY, &pref(50)),
                        (FRA_TABLE, &main),
                        (FRA_FWMARK, &mark(0x53b)),
                        (FRA_FWMASK, &mark(0xfff)),
                    ],
                ),
                (0, 1),
            ),
            // another mark
            (
                rule(
                    1,
                    &[
                        (FRA_PRIORITY, &pref(50)),
                        (FRA_TABLE, &main),
                        (FRA_FWMARK, &mark(0x111)),
                        (FRA_FWMASK, &mark(0xfff)),
                    ],
                ),
                (0, 0),
            ),
            // after ours
            (
                rule(1, &[(FRA_PRIORITY, &pref(200)), (FRA_TABLE, &main)]),
                (0, 0),
            ),
            // into our table
            (
                rule(1, &[(FRA_PRIORITY, &pref(200)), (FRA_TABLE, &ours)]),
                (1, 0),
            ),
            (
                rule(
                    1,
                    &[
                        (FRA_PRIORITY, &pref(100)),
                        (FRA_TABLE, &ours),
                        (FRA_FWMARK, &mark(0x53b)),
                        (FRA_FWMASK, &mark(u32::MAX)),
                        (FRA_UID_RANGE, &[0; 8]),
                    ],
                ),
                (1, 0),
            ),
        ];
        for (at, (body, wanted)) in cases.into_iter().enumerate() {
            assert_eq!(sorted(body), wanted, "case {at}");
        }
        assert_eq!(RTM_NEWRULE + 1, RTM_DELRULE);
    }

    #[test]
    fn a_narrowed_copy_is_not_ours() {
        let ours = Rule::Redirect(Family::V4);
        assert!(ours.matches(&ours.body()));
        let mut narrowed = ours.body();
        attribute(&mut narrowed, FRA_UID_RANGE, &[0; 8]);
        assert!(!ours.matches(&narrowed));
        let mut inverted = ours.body();
        inverted[8..12].copy_from_slice(&INVERT.to_ne_bytes());
        assert!(!ours.matches(&inverted));
        let mut shown = ours.body();
        attribute(&mut shown, FRA_SUPPRESS_PREFIXLEN, &u32::MAX.to_ne_bytes());
        assert!(ours.matches(&shown));
    }
}
