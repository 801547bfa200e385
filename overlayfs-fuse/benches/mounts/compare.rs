//! The comparison with an earlier run, whose results are in a file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::report::{Report, Summary};
use crate::subject::Subject;

/// The ratios of a row on a subject to the bare filesystem: of the least, the median and the most.
#[derive(Clone, Copy)]
struct Ratios {
    least: f64,
    median: f64,
    most: f64,
}

/// The results of an earlier run, by row and subject.
pub struct Earlier(BTreeMap<(String, String), Ratios>);

impl Earlier {
    /// Reads a file that `--json` wrote.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|error| format!("{} cannot be read: {error}.", path.display()))?;
        let rows: Vec<Value> = serde_json::from_str(&text)
            .map_err(|error| format!("{} has no results of this benchmark: {error}.", path.display()))?;
        let mut all = BTreeMap::new();
        for row in &rows {
            let results = row["results"].as_array().map(Vec::as_slice).unwrap_or_default();
            let is_bare = |result: &&Value| result["subject"] == Subject::Bare.name();
            let bare = results.iter().find(is_bare).and_then(|bare| bare["median"].as_f64()).unwrap_or(f64::NAN);
            for result in results {
                let ratio = |word: &str| result[word].as_f64().unwrap_or(f64::NAN) / bare;
                let key = [&row["row"], &result["subject"]].map(|word| word.as_str().unwrap_or_default().to_owned());
                let ratios = Ratios { least: ratio("least"), median: ratio("median"), most: ratio("most") };
                all.insert(key.into(), ratios);
            }
        }
        Ok(Self(all))
    }

    /// Returns a table of our rows that moved by more than the spread of both runs, and the names
    /// of those that take longer now.
    pub fn compare(&self, report: &Report) -> (String, Vec<&'static str>) {
        let mut text = "| work | subject | before | now | |\n| --- | --- | --- | --- | --- |\n".to_owned();
        let mut worse = Vec::new();
        for line in &report.lines {
            let Some(bare) = line.results.first().map(|bare| bare.median) else { continue };
            let ours = |result: &&Summary| [Subject::Ours, Subject::OverRing].contains(&result.subject);
            for result in line.results.iter().filter(ours) {
                let Some(old) = self.0.get(&(line.name.to_owned(), result.subject.name().to_owned())) else { continue };
                let new = Ratios { least: result.least / bare, median: result.ratio, most: result.most / bare };
                let moved = if new.median > old.most && new.least > old.median {
                    worse.push(line.name);
                    "**worse**"
                } else if new.median < old.least && new.most < old.median {
                    "better"
                } else {
                    continue;
                };
                text += &format!(
                    "| {} | {} | {} | {} | {moved} |\n",
                    line.name,
                    result.subject.name(),
                    old.text(),
                    new.text()
                );
            }
        }
        (text, worse)
    }
}

impl Ratios {
    fn text(self) -> String {
        format!("{:.2} ({:.2}–{:.2})", self.median, self.least, self.most)
    }
}
