//! The memory of a process, from the table of the kernel. The daemon cannot read it: in its
//! namespace there is no `/scheme/sys`.

/// Returns the private memory of a process in bytes, as exactly as the kernel tells it.
pub fn of(pid: u64) -> Option<u64> {
    let table = std::fs::read_to_string("/scheme/sys/context").ok()?;
    table.lines().find_map(|line| in_line(line, pid))
}

/// Returns the private memory in the line of a thread, if it is one of this process. Each line has
/// the memory of the whole process.
fn in_line(line: &str, pid: u64) -> Option<u64> {
    let words: Vec<&str> = line.split_whitespace().collect();
    // The last words are two sizes, each a number and a unit, and the name.
    let [process, .., number, unit, _, _, _] = words[..] else { return None };
    if process.parse() != Ok(pid) {
        return None;
    }
    let power = ["B", "KB", "MB", "GB"].iter().position(|known| *known == unit)?;
    Some((number.parse::<f64>().ok()? * 1024f64.powi(power as i32)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_process_has_its_memory() {
        let line = "12    0     0     UB    #0    0,1        00:00:00.12 1.50 MB 4.00 KB    /bin/overlayfs";
        assert_eq!((in_line(line, 12), in_line(line, 1)), (Some(3 << 19), None));
        for other in ["PID EUID EGID STAT CPU AFFINITY TIME PRIVATE SHARED NAME", "", "12 1 X 4 KB n", "12"] {
            assert_eq!(in_line(other, 12), None, "{other}");
        }
    }
}
