//! Facts as text for people, as JSON, and as metrics for Prometheus.

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::fact::{Fact, Value};
use super::options::Form;
use super::requests::{BUCKETS, bound};
use crate::errno::Error;
use crate::layer_tools::text::escaped;

/// What kind of value the facts of a name have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One text.
    Text,
    /// Any number of texts, in an order.
    List,
    /// A number that goes up and down.
    Gauge,
    /// A number that only grows.
    Counter,
    /// One number that only grows for each label, which is a value of this key.
    Counters(&'static str),
    /// The latencies of each kind of request.
    Latencies,
}

/// A name of facts.
struct Known {
    name: &'static str,
    kind: Kind,
    /// The end of its name as a metric, after the name: the unit.
    unit: &'static str,
    about: &'static str,
}

const fn known(name: &'static str, kind: Kind, unit: &'static str, about: &'static str) -> Known {
    Known { name, kind, unit, about }
}

/// The names, in the order in which they are shown. `docs/control.md` lists them for programs.
const KNOWN: &[Known] = &[
    known("mount_point", Kind::Text, "", "the mount point"),
    known("version", Kind::Text, "", "the version of the program that serves"),
    known("pid", Kind::Gauge, "", "the process that serves"),
    known("since", Kind::Gauge, "_seconds", "when the mount began, since 1970"),
    known("format", Kind::Text, "", "the format of the upper layer"),
    known("lower", Kind::List, "", "lower layer"),
    known("upper", Kind::Text, "", "upper layer"),
    known("work", Kind::Text, "", "work directory"),
    known("option", Kind::List, "", "option"),
    known("comebacks", Kind::Counter, "", "how often the mount came back after its process was killed"),
    known("objects", Kind::Gauge, "", "objects that clients know"),
    known("cached_names", Kind::Gauge, "", "directories and names in the cache"),
    known("open_files", Kind::Gauge, "", "files of layers that are open"),
    known("partial_copies", Kind::Gauge, "", "files that are copied up in part"),
    known("missing", Kind::Gauge, "_bytes", "bytes that partial copies still lack"),
    known("copied_files", Kind::Counter, "", "files copied up"),
    known("copied", Kind::Counter, "_bytes", "bytes copied up"),
    known("lookups", Kind::Counter, "", "lookups of names"),
    known("lookup_hits", Kind::Counter, "", "lookups that needed no layer"),
    known("memory", Kind::Gauge, "_bytes", "resident memory of the process"),
    known("descriptors", Kind::Gauge, "", "open descriptors of the process"),
    known("requests", Kind::Latencies, "_seconds", "requests and the time until their answer"),
    known("errors", Kind::Counters("errno"), "", "requests answered with an error"),
    known("backing_calls", Kind::Counters("call"), "", "calls to the layers"),
    known("warning", Kind::List, "", "the last warnings"),
];

/// Returns the facts of the overlay at `mount_point` in a form.
pub fn in_form(form: Form, facts: &[Fact], mount_point: &Path) -> String {
    match form {
        Form::Text => text_lines(facts, ""),
        Form::Json => format!("{}\n", Json::from(json(facts))),
        Form::Metrics => metrics(facts, mount_point),
    }
}

/// Returns the facts as an object, without those of unknown names. A name of `Kind::List` is an
/// array even if it has one value.
pub fn json(facts: &[Fact]) -> Map<String, Json> {
    let mut object = Map::new();
    for known in KNOWN {
        let all: Vec<_> = facts.iter().filter(|fact| fact.name == known.name).collect();
        let Some(first) = all.first() else { continue };
        let labelled = |value: fn(&Fact) -> Json| -> Json {
            all.iter().map(|fact| (fact.label.clone(), value(fact))).collect::<Map<_, _>>().into()
        };
        let value = match known.kind {
            Kind::Text => Json::from(text(first)),
            Kind::List => all.iter().map(|fact| text(fact)).collect(),
            Kind::Gauge | Kind::Counter => number(first).into(),
            Kind::Counters(_) => labelled(|fact| number(fact).into()),
            Kind::Latencies => labelled(|fact| {
                let (nanoseconds, buckets) = latencies(fact);
                let count: u64 = buckets.iter().sum();
                json!({ "count": count, "nanoseconds": nanoseconds, "buckets": buckets })
            }),
        };
        object.insert(known.name.to_owned(), value);
    }
    object
}

/// Returns the facts as lines for people. Each begins with `indent`.
pub fn text_lines(facts: &[Fact], indent: &str) -> String {
    let mut lines = String::new();
    for known in KNOWN {
        for fact in facts.iter().filter(|fact| fact.name == known.name) {
            let value = match known.kind {
                Kind::Text | Kind::List => escaped(Path::new(std::ffi::OsStr::from_bytes(bytes(fact)))),
                Kind::Gauge | Kind::Counter => number(fact).to_string(),
                Kind::Counters(_) => format!("{} {}", label_text(known.name, &fact.label), number(fact)),
                Kind::Latencies => latency_text(fact),
            };
            // A String takes every write.
            let _ = writeln!(lines, "{indent}{:16}{value}", known.name);
        }
    }
    lines
}

/// Returns the facts of one mount as metrics in the text format of Prometheus.
pub fn metrics(facts: &[Fact], mount_point: &Path) -> String {
    let place = format!("mount_point=\"{}\"", label_value(&mount_point.to_string_lossy()));
    let mut lines = String::new();
    for Known { name, kind, unit, about } in KNOWN {
        let all: Vec<_> = facts.iter().filter(|fact| fact.name == *name).collect();
        let (kind_word, total) = match kind {
            Kind::Text | Kind::List => continue,
            Kind::Gauge => ("gauge", ""),
            Kind::Counter | Kind::Counters(_) => ("counter", "_total"),
            Kind::Latencies => ("histogram", ""),
        };
        if all.is_empty() || *name == "pid" {
            continue;
        }
        let metric = format!("overlayfs_{name}{unit}{total}");
        // A String takes every write.
        let _ = writeln!(lines, "# HELP {metric} {about}.\n# TYPE {metric} {kind_word}");
        for fact in all {
            let label = label_value(&fact.label);
            let _ = match kind {
                Kind::Counters(key) => writeln!(lines, "{metric}{{{place},{key}=\"{label}\"}} {}", number(fact)),
                Kind::Latencies => write!(lines, "{}", histogram(&metric, &format!("{place},kind=\"{label}\""), fact)),
                _ => writeln!(lines, "{metric}{{{place}}} {}", number(fact)),
            };
        }
    }
    lines
}

/// Returns the lines of one histogram.
fn histogram(metric: &str, labels: &str, fact: &Fact) -> String {
    let (nanoseconds, buckets) = latencies(fact);
    let (mut lines, mut so_far) = (String::new(), 0);
    for (bucket, count) in buckets.iter().enumerate() {
        so_far += count;
        let limit = match bucket + 1 == BUCKETS {
            true => "+Inf".to_owned(),
            false => seconds(bound(bucket)),
        };
        let _ = writeln!(lines, "{metric}_bucket{{{labels},le=\"{limit}\"}} {so_far}");
    }
    let sum = seconds(nanoseconds);
    let _ = write!(lines, "{metric}_sum{{{labels}}} {sum}\n{metric}_count{{{labels}}} {so_far}\n");
    lines
}

/// Returns a number of nanoseconds as seconds, exactly.
fn seconds(nanoseconds: u64) -> String {
    format!("{}.{:09}", nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000)
}

fn latency_text(fact: &Fact) -> String {
    let (nanoseconds, buckets) = latencies(fact);
    let count: u64 = buckets.iter().sum();
    // The bucket in which the request at this part of all requests is.
    let below = |percent: u64| {
        let rank = (count * percent).div_ceil(100).max(1);
        let mut so_far = 0;
        let found = buckets.iter().position(|bucket| {
            so_far += bucket;
            so_far >= rank
        });
        match found {
            Some(bucket) if bucket + 1 < BUCKETS => format!("below {}", duration(bound(bucket))),
            _ => "longer".to_owned(),
        }
    };
    let mean = nanoseconds.checked_div(count).unwrap_or(0);
    let label = plain(&fact.label);
    format!("{label} {count}, mean {}, half {}, 99% {}", duration(mean), below(50), below(99))
}

/// Returns a number of nanoseconds for people.
fn duration(nanoseconds: u64) -> String {
    match nanoseconds {
        0..10_000 => format!("{nanoseconds} ns"),
        10_000..10_000_000 => format!("{} us", nanoseconds / 1_000),
        10_000_000..10_000_000_000 => format!("{} ms", nanoseconds / 1_000_000),
        _ => format!("{} s", nanoseconds / 1_000_000_000),
    }
}

/// Returns the sum of the nanoseconds, and the counts of all buckets.
fn latencies(fact: &Fact) -> (u64, [u64; BUCKETS]) {
    let Value::Numbers(numbers) = &fact.value else { return (0, [0; BUCKETS]) };
    // Another program may tell sums that are too large to add.
    let one = |at: usize| numbers.get(at).copied().unwrap_or(0).min(u64::MAX >> 16);
    (numbers.first().copied().unwrap_or(0), std::array::from_fn(|bucket| one(bucket + 1)))
}

fn bytes(fact: &Fact) -> &[u8] {
    match &fact.value {
        Value::Text(text) => text,
        Value::Numbers(_) => &[],
    }
}

fn text(fact: &Fact) -> String {
    String::from_utf8_lossy(bytes(fact)).into_owned()
}

fn number(fact: &Fact) -> u64 {
    match &fact.value {
        Value::Numbers(numbers) => numbers.first().copied().unwrap_or(0),
        Value::Text(_) => 0,
    }
}

/// Returns a label for people: an errno with its text.
fn label_text(name: &str, label: &str) -> String {
    match label.parse() {
        Ok(errno) if name == "errors" => format!("{errno} ({})", Error::new(errno)),
        _ => plain(label),
    }
}

/// Returns a label as one line.
fn plain(label: &str) -> String {
    escaped(Path::new(label))
}

/// Escapes the value of a label for Prometheus.
fn label_value(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::requests::Requests;
    use std::time::Duration;

    fn labelled(name: &str, label: &str, number: u64) -> Fact {
        Fact { name: name.to_owned(), label: label.to_owned(), value: Value::Numbers(vec![number]) }
    }

    fn facts() -> Vec<Fact> {
        let requests = Requests::new(&["lookup"]);
        let part = requests.part();
        part.add(0, Duration::from_nanos(600), 2);
        part.add(0, Duration::from_secs(100), 0);
        let mut facts = vec![
            Fact::text("option", b"a\nb".to_vec()),
            Fact::text("lower", "/l"),
            Fact::number("missing", 7),
            Fact::number("copied", 9),
            labelled("backing_calls", "st\"at\n", 3),
            Fact::text("of a later version", "x"),
        ];
        facts.extend(requests.facts());
        facts
    }

    #[test]
    fn json_has_stable_shapes() {
        let mut buckets = vec![0; BUCKETS];
        (buckets[1], buckets[BUCKETS - 1]) = (1, 1);
        let expected = json!({
            "lower": ["/l"],
            "option": ["a\nb"],
            "missing": 7,
            "copied": 9,
            "requests": { "lookup": { "count": 2, "nanoseconds": 100_000_000_600_u64, "buckets": buckets } },
            "errors": { "2": 1 },
            "backing_calls": { "st\"at\n": 3 },
        });
        assert_eq!(Json::from(json(&facts())), expected);
    }

    #[test]
    fn text_is_one_line_for_each_fact() {
        let text = text_lines(&facts(), "  ");
        assert_eq!(text.lines().count(), facts().len() - 1);
        assert!(text.contains("\n  option          a\\nb\n"), "{text}");
        assert!(text.contains("\n  requests        lookup 2, mean 50 s, half below 1024 ns, 99% longer\n"), "{text}");
        assert!(text.contains("\n  errors          2 (No such file or directory) 1\n"), "{text}");
    }

    #[test]
    fn metrics_are_escaped_and_have_units() {
        let metrics = metrics(&facts(), Path::new("/a\"b\\"));
        let place = "mount_point=\"/a\\\"b\\\\\"";
        for line in [
            "# TYPE overlayfs_missing_bytes gauge",
            "# TYPE overlayfs_copied_bytes_total counter",
            "# TYPE overlayfs_requests_seconds histogram",
            &format!("overlayfs_missing_bytes{{{place}}} 7"),
            &format!("overlayfs_copied_bytes_total{{{place}}} 9"),
            &format!("overlayfs_errors_total{{{place},errno=\"2\"}} 1"),
            &format!("overlayfs_backing_calls_total{{{place},call=\"st\\\"at\\n\"}} 3"),
            &format!("overlayfs_requests_seconds_bucket{{{place},kind=\"lookup\",le=\"0.000000512\"}} 0"),
            &format!("overlayfs_requests_seconds_bucket{{{place},kind=\"lookup\",le=\"0.000001024\"}} 1"),
            &format!("overlayfs_requests_seconds_bucket{{{place},kind=\"lookup\",le=\"+Inf\"}} 2"),
            &format!("overlayfs_requests_seconds_sum{{{place},kind=\"lookup\"}} 100.000000600"),
            &format!("overlayfs_requests_seconds_count{{{place},kind=\"lookup\"}} 2"),
        ] {
            assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
        }
    }

    #[test]
    fn the_page_lists_every_name() {
        let page = include_str!("../../docs/control.md");
        for known in KNOWN {
            assert!(page.contains(&format!("`{}`", known.name)), "docs/control.md lacks {}", known.name);
        }
    }

    #[test]
    fn numbers_of_another_program_do_not_overflow() {
        let numbers = vec![u64::MAX; 64];
        let fact = Fact { name: "requests".to_owned(), label: String::new(), value: Value::Numbers(numbers) };
        let facts = [fact, Fact::text("missing", "x"), Fact::number("warning", 1)];
        assert!(json(&facts).len() == 3 && !text_lines(&facts, "").is_empty());
        assert!(!metrics(&facts, Path::new("/")).is_empty());
    }
}
