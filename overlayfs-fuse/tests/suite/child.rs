//! Work in a process of its own, as this user or as another.

/// Runs `work` in another process, and returns its result.
pub fn in_a_child(work: impl Fn() -> bool) -> bool {
    // SAFETY: the child makes only system calls of its own, and ends without a return.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let done = work();
        // SAFETY: takes a number and does not return.
        unsafe { libc::_exit(i32::from(!done)) };
    }
    let mut status = 0;
    // SAFETY: the status is written to a variable of its type.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    status == 0
}

/// Runs `work` in another process with the ids of another user, and returns its result.
pub fn as_another_user(work: impl Fn() -> bool) -> bool {
    as_user(4242, work)
}

/// Runs `work` in another process with `id` as user and group and without other groups, and returns
/// its result.
pub fn as_user(id: u32, work: impl Fn() -> bool) -> bool {
    in_a_child(|| {
        // SAFETY: takes numbers only. The calls change this process alone.
        let changed =
            unsafe { libc::setgroups(0, std::ptr::null()) == 0 && libc::setgid(id) == 0 && libc::setuid(id) == 0 };
        changed && work()
    })
}
