//! The rights of requests that do not name their caller, or name a wrong one. Each row of the Redox
//! kernel's behaviour has its test here.

use syscall::TimeSpec;
use syscall::error::{EACCES, EPERM};
use syscall::flag::{AT_REMOVEDIR, O_CREAT, O_DIRECTORY, O_RDONLY, O_RDWR, O_STAT, O_SYMLINK, O_WRONLY, StdFsCallKind};

use crate::support::{Setup, ann, errno, eve, refused, root};

/// A directory of ann that eve can only read, and one that belongs to eve.
fn setup() -> Setup {
    Setup::new(|lower| {
        lower.dir("anns", 0o755);
        lower.file("anns/f", 0o644);
        lower.dir("anns/d", 0o755);
        lower.dir_of("eves", 0o755, 1002, 200);
        lower.file_of("eves/f", 0o644, 1002, 200);
        lower.dir("tmp", 0o777);
    })
}

#[test]
fn calls_with_the_ids_of_root_have_the_rights_of_the_opener() {
    let setup = setup();
    let file = setup.open(&eve(), "anns/f", O_STAT).unwrap();
    let times = TimeSpec { tv_sec: 1, tv_nsec: 0 };
    // The kernel sends uid 0 in all these requests.
    assert_eq!(file.fchmod(0o666), refused(EPERM));
    assert_eq!(file.futimens(times, times), refused(EPERM));
    let ids = 1002 | 200 << 32;
    assert_eq!(file.std_fs_call(StdFsCallKind::Fchown as u8, &mut [], ids, 0), refused(EPERM));
    assert_eq!((setup.mode("anns/f"), setup.owner("anns/f")), (0o644, (1000, 100)));
    file.fstat().unwrap();
    file.fstatvfs().unwrap();
    file.fsync().unwrap();

    let own = setup.open(&eve(), "eves/f", O_RDWR).unwrap();
    own.fchmod(0o6777).unwrap();
    own.ftruncate(1).unwrap();
    assert_eq!(setup.mode("eves/f"), 0o777, "resized by eve, not by root");
    own.futimens(times, times).unwrap();
}

#[test]
fn a_second_argument_in_the_place_of_the_ids_gives_no_rights() {
    let setup = setup();
    let file = setup.open(&eve(), "anns/f", O_STAT).unwrap();
    for argument in [0, 1000 | 100 << 32] {
        assert_eq!(file.std_fs_call(StdFsCallKind::Fchmod as u8, &mut [], 0o666, argument), refused(EPERM));
        let dir = setup.open(&eve(), "anns", O_STAT).unwrap();
        let mut path = *b"f";
        let call = dir.std_fs_call(StdFsCallKind::Unlinkat as u8, &mut path, 0, argument);
        assert_eq!(call, refused(EACCES), "an unlinkat as this kind of call, with {argument:x}");
    }
    assert!(setup.exists("anns/f"));
}

#[test]
fn unlinkat_as_a_standard_call_has_the_rights_of_the_directorys_opener() {
    let setup = setup();
    let anns = setup.open(&ann(), "anns", O_STAT).unwrap();
    let seen_by_eve = setup.open(&eve(), "anns", O_STAT).unwrap();
    assert_eq!(seen_by_eve.std_unlinkat("f", 0), refused(EACCES));
    assert_eq!(seen_by_eve.std_unlinkat("d", AT_REMOVEDIR), refused(EACCES));
    assert_eq!(eve().scheme_root(setup.name()).unwrap().std_unlinkat("anns/f", 0), refused(EACCES), "it has no opener");
    anns.std_unlinkat("f", 0).unwrap();
    anns.std_unlinkat("d", AT_REMOVEDIR).unwrap();
}

#[test]
fn two_handle_calls_have_the_rights_of_both_openers() {
    let setup = setup();
    let [anns, tmp, eves] = ["anns", "tmp", "eves"].map(|name| setup.open(&eve(), name, O_STAT).unwrap());
    assert_eq!(anns.frenameat("f", &tmp, "f", 0), refused(EACCES));
    assert_eq!(eves.frenameat("f", &anns, "g", 0), refused(EACCES));
    assert_eq!(eves.frenameat("f", &anns, "f", 0), refused(EACCES));
    let file = setup.open(&eve(), "eves/f", O_STAT).unwrap();
    assert_eq!(file.flinkat(&anns, "g", 0), refused(EACCES));
    let root_cap = eve().scheme_root(setup.name()).unwrap();
    assert_eq!(root_cap.frenameat("anns/f", &tmp, "f", 0), refused(EACCES));
    assert_eq!(file.flinkat(&root_cap, "anns/g", 0), refused(EACCES));

    eves.frenameat("f", &tmp, "f", 0).unwrap();
    let by_ann = setup.open(&ann(), "anns", O_STAT).unwrap();
    tmp.frenameat("f", &by_ann, "f", 0).unwrap();
    assert_eq!(setup.content("anns/f"), "eves/f", "eve takes it from tmp, ann lets it in");
}

#[test]
fn requests_that_name_their_caller_have_its_rights() {
    let setup = setup();
    // Handles that ann opened and eve inherited.
    let dir = eve().inherit(&setup.open(&ann(), "anns", O_RDONLY).unwrap());
    assert_eq!(errno(dir.openat("new", O_CREAT | O_RDWR | 0o600, 0)), EACCES);
    assert_eq!(errno(dir.openat("new", O_CREAT | O_DIRECTORY | 0o700, 0)), EACCES);
    assert_eq!(errno(dir.openat("new", O_CREAT | O_SYMLINK | O_WRONLY, 0)), EACCES);
    assert_eq!(errno(dir.openat("f", O_WRONLY, 0)), EACCES);
    assert_eq!(errno(dir.unlinkat("f", 0)), EACCES);
    assert_eq!(errno(dir.unlinkat("d", AT_REMOVEDIR)), EACCES);
    let file = eve().inherit(&setup.open(&ann(), "anns/f", O_RDWR).unwrap());
    assert_eq!(file.frename(setup.path("tmp/f")), refused(EACCES));
    assert_eq!(file.flink(setup.path("anns/g")), refused(EPERM));
    assert_eq!(file.flink(setup.path("tmp/g")), refused(EPERM));
    assert_eq!(file.write(b"x"), Ok(1), "an open handle is a right in itself");

    let set_id = setup.open(&root(), "anns/f", O_RDWR).unwrap();
    set_id.fchmod(0o4755).unwrap();
    eve().inherit(&set_id).write(b"x").unwrap();
    assert_eq!(setup.mode("anns/f"), 0o755, "eve wrote, though root opened");
}

#[test]
fn clients_of_several_users_at_once() {
    let setup = setup();
    std::thread::scope(|scope| {
        for (uid, dir) in [(1000, "anns"), (1002, "eves")] {
            let setup = &setup;
            scope.spawn(move || {
                let me = linux_delegate::Process::new(uid, 300);
                for i in 0..50 {
                    let path = setup.path(&format!("{dir}/{uid}-{i}"));
                    me.write_file(&path, "mine").unwrap();
                    assert_eq!(me.stat(&path).unwrap().st_uid, uid);
                    let other = if dir == "anns" { "eves" } else { "anns" };
                    assert_eq!(errno(me.write_file(setup.path(&format!("{other}/{uid}-{i}")), "")), EACCES);
                    me.rename(&path, setup.path(&format!("tmp/{uid}-{i}"))).unwrap();
                }
            });
        }
    });
    assert_eq!(root().read_dir(setup.path("tmp")).unwrap().len(), 100);
}

#[test]
fn rename_and_link_of_relibc_arrive_unchecked() {
    let setup = setup();
    let other = Setup::new(|lower| lower.dir("tmp", 0o777));
    // The kernel drops the scheme of the new path, so the file stays in this scheme under that
    // name.
    ann().rename(setup.path("anns/f"), other.path("tmp/f")).unwrap();
    assert_eq!(setup.content("tmp/f"), "anns/f");
    assert!(!other.exists("tmp/f"));
    assert_eq!(errno(ann().rename(setup.path("tmp/f"), other.path("tmp/none/f"))), syscall::error::ENOENT);
}
