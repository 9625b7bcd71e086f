//! What the daemon has counted that says something about its health.

use capture::probe::Finding;

/// A family of metrics and what a number in it means.
struct Watched {
    family: &'static str,
    name: &'static str,
    hint: &'static str,
}

const WATCHED: [Watched; 3] = [
    Watched {
        family: "ztunnel_capture_drift_total",
        name: "drift repaired",
        hint: "something else changed rules, routes, programs or sysctls of captured pods: the daemon's log says which and when",
    },
    Watched {
        family: "ztunnel_shed_connections_total",
        name: "connections shed",
        hint: "a pod had more open than it may have: the log and the dump's refusals say which",
    },
    Watched {
        family: "ztunnel_panics_total",
        name: "panics",
        hint: "each ended one flow: please report the lines of the log",
    },
];

/// One finding for each family that the daemon has.
pub fn findings(text: &str) -> Vec<Finding> {
    WATCHED
        .iter()
        .filter_map(|watched| watched.finding(text))
        .collect()
}

impl Watched {
    fn finding(&self, text: &str) -> Option<Finding> {
        let samples: Vec<(&str, f64)> = text
            .lines()
            .filter_map(|line| sample(line, self.family))
            .collect();
        if samples.is_empty() {
            return None;
        }
        let raised: Vec<String> = samples
            .iter()
            .filter(|(_, value)| *value > 0.0)
            .map(|(labels, value)| match *labels {
                "" => value.to_string(),
                labels => format!("{labels}: {value}"),
            })
            .collect();
        Some(if raised.is_empty() {
            Finding::ok(self.name, "none")
        } else {
            Finding::warning(self.name, raised.join(", "), self.hint)
        })
    }
}

/// Labels and value of a line of this family.
fn sample<'a>(line: &'a str, family: &str) -> Option<(&'a str, f64)> {
    let rest = line.strip_prefix(family)?;
    let (labels, value) = match rest.strip_prefix('{') {
        Some(rest) => rest.rsplit_once('}')?,
        None => ("", rest),
    };
    if !value.starts_with(' ') {
        return None;
    }
    Some((labels, value.split_whitespace().next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use capture::probe::Status;

    use super::*;

    #[test]
    fn counters() {
        let text = "# TYPE ztunnel_capture_drift counter\n\
                    ztunnel_capture_drift_total{kind=\"rule\"} 2\n\
                    ztunnel_capture_drift_total{kind=\"map\"} 0\n\
                    ztunnel_panics_total 0\n\
                    ztunnel_panics_total_of_others 5\n";
        let found = findings(text);
        assert_eq!(found.len(), 2);
        assert_eq!(
            (found[0].status, found[0].detail.as_str()),
            (Status::Warning, "kind=\"rule\": 2")
        );
        assert_eq!(
            (found[1].status, found[1].detail.as_str()),
            (Status::Ok, "none")
        );
    }
}
