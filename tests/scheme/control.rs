//! The channel: calls on the root of the scheme that carry a frame.

use std::path::Path;
use std::thread;

use linux_delegate::{Fd, Process, abi};
use overlayfs::client::Channel;
use overlayfs::control::fact::{Fact, Value};
use overlayfs::control::frame::Frame;
use overlayfs::control::{CALL, Command};
use syscall::error::{EINVAL, ENOENT, ENOTTY, EOPNOTSUPP, EPERM, Error, Result};
use syscall::flag::{O_RDWR, O_STAT};

use crate::support::{Setup, ann, bob, command, eve, refused, root};

/// Sends a command without arguments.
fn ask(root: &Fd, name: Command) -> Result<Vec<Fact>> {
    command(root, name, &[])
}

fn number(facts: &[Fact], name: &str) -> u64 {
    let found = facts.iter().find(|fact| fact.name == name);
    match found.map(|fact| &fact.value) {
        Some(Value::Numbers(numbers)) => numbers[0],
        other => panic!("{name} is {other:?}"),
    }
}

fn setup() -> Setup {
    let facts = (0..300).map(|number| Fact::text("lower", format!("/layers/{number:0100}"))).collect();
    Setup::with_channel(|lower| lower.file_with("large", &[b'x'; 4 << 20], 0o666, 1000, 100), facts)
}

fn top(setup: &Setup, who: &Process) -> Fd {
    setup.open(who, "", O_STAT).unwrap()
}

#[test]
fn the_server_and_root_get_answers() {
    let setup = setup();
    for who in [root(), ann()] {
        assert_eq!(ask(&top(&setup, &who), Command::Info).unwrap().len(), 300);
    }
    for who in [bob(), eve()] {
        assert_eq!(ask(&top(&setup, &who), Command::Info), refused(EPERM));
    }
}

#[test]
fn only_the_root_is_the_channel() {
    let setup = setup();
    let file = setup.open(&root(), "large", O_STAT).unwrap();
    assert_eq!(ask(&file, Command::Info), refused(EOPNOTSUPP));
    let top = top(&setup, &root());
    let mut bytes = Frame { command: 1, error: 0, cursor: 0, payload: &[] }.bytes().unwrap();
    assert_eq!(top.call(&mut bytes, &[CALL + 1]), refused(EOPNOTSUPP));
    assert_eq!(top.call(&mut bytes[..100], &[CALL]), refused(EINVAL));
    bytes[4] = 9;
    assert_eq!(top.call(&mut bytes, &[CALL]), Err(Error::new(ENOTTY)), "an unknown version");
    let without = Setup::new(|_| {});
    assert_eq!(ask(&without.open(&root(), "", O_STAT).unwrap(), Command::Info), refused(EOPNOTSUPP));
}

#[test]
fn status_and_sync_show_a_partial_copy() {
    let setup = setup();
    let top = top(&setup, &ann());
    let file = setup.open(&ann(), "large", O_RDWR).unwrap();
    file.write(b"new").unwrap();
    let before = ask(&top, Command::Status).unwrap();
    assert_eq!(number(&before, "copied_files"), 1);
    // redoxfs has no partial copies.
    let (partial, missing) = (number(&before, "partial_copies"), number(&before, "missing"));
    assert!(partial == 1 && missing > 3 << 20 || partial == 0 && missing == 0, "{partial} with {missing}");
    assert!(number(&before, "objects") >= 2);
    assert!(number(&before, "lookups") > 0);
    assert_eq!(ask(&top, Command::Sync), Ok(Vec::new()));
    let after = ask(&top, Command::Status).unwrap();
    assert_eq!((number(&after, "partial_copies"), number(&after, "missing")), (0, 0));
    assert!(number(&after, "copied") > 3 << 20);
}

/// Returns how many requests of a kind, or answers with an errno, the facts count.
fn count(facts: &[Fact], name: &str, label: &str) -> u64 {
    let found = facts.iter().find(|fact| fact.name == name && fact.label == label);
    match found.map(|fact| &fact.value) {
        Some(Value::Numbers(numbers)) if name == "requests" => numbers[1..].iter().sum(),
        Some(Value::Numbers(numbers)) => numbers[0],
        _ => 0,
    }
}

#[test]
fn status_counts_requests_by_kind_and_errors_by_errno() {
    let setup = setup();
    let top = top(&setup, &ann());
    let before = ask(&top, Command::Status).unwrap();
    let file = setup.open(&ann(), "large", O_RDWR).unwrap();
    for _ in 0..5 {
        file.read_at(&mut [0; 10], 0).unwrap();
    }
    for _ in 0..3 {
        assert_eq!(setup.open(&ann(), "missing", O_STAT).err(), Some(Error::new(ENOENT)));
    }
    file.read_at(&mut [0; 10], u64::MAX).unwrap_err();
    let after = ask(&top, Command::Status).unwrap();
    let more = |name: &str, label: &str| count(&after, name, label) - count(&before, name, label);
    assert_eq!([more("requests", "read"), more("requests", "open")], [6, 4]);
    assert_eq!([more("errors", &ENOENT.to_string()), more("errors", &EINVAL.to_string())], [3, 1]);
    assert_eq!(more("requests", "call"), 1, "the question before");
}

#[test]
fn the_client_asks_through_the_root_of_the_scheme() {
    let setup = setup();
    let ask = |who: Process, name: &str| {
        let name = name.to_owned();
        let asked = thread::spawn(move || {
            abi::act_as(&who);
            Channel::open(Path::new(&name))?.ask(Command::Info, &[])
        });
        asked.join().unwrap().map_err(|trouble| trouble.to_string())
    };
    assert_eq!(ask(ann(), setup.name()).unwrap().len(), 300);
    assert_eq!(ask(root(), &format!("/scheme/{}", setup.name())).unwrap().len(), 300);
    assert_eq!(ask(bob(), setup.name()).unwrap_err(), "only root and the user that serves it may do that");
    assert_eq!(ask(root(), "nobody").unwrap_err(), "no daemon serves that scheme");
    let without = Setup::new(|_| {});
    let unknown = "the scheme does not know this command; it is no overlay of this version";
    assert_eq!(ask(root(), without.name()).unwrap_err(), unknown);
}
