# Completion of overlayfs-fuse. scripts/pages writes this file.

_overlayfs_fuse() {
    local line=${COMP_LINE:0:COMP_POINT} replaced=${COMP_WORDS[COMP_CWORD]} before part offer=(-d -S /)
    # bash splits words at '=' and ':' too, and replaces only what is behind them.
    [[ $replaced == [=:] ]] && replaced=
    part=${line##* }
    before=${line%"$part"} before=${before%% } before=${before##* }
    compopt -o nospace
    if [[ $before == -o ]]; then
        part=${part##*,}
        case $part in
        lowerdir=*) offer=(-d -S /) ;;
        lowerdir+=*) offer=(-d -S /) ;;
        upperdir=*) offer=(-d -S /) ;;
        workdir=*) offer=(-d -S /) ;;
        snapshots=*) offer=(-d -S /) ;;
        format=*) offer=(-W 'oci kernel') ;;
        fsync=*) offer=(-W '0 1') ;;
        on_exit=*) offer=(-W 'preserve discard commit commit-atomic') ;;
        redirect_dir=*) offer=(-W 'on off follow') ;;
        threaded=*) offer=(-W '0 1') ;;
        io_uring=*) offer=(-W 'auto on off') ;;
        writeback=*) offer=(-W '0 1') ;;
        door=*) offer=(-W 'engine') ;;
        xino=*) offer=(-W 'off auto on') ;;
        index=*) offer=(-W 'off') ;;
        nfs_export=*) offer=(-W 'off on') ;;
        uuid=*) offer=(-W 'auto null off') ;;
        metacopy=*) offer=(-W 'on off') ;;
        noxattrs=*) offer=(-W '0') ;;
        xattr_permissions=*) offer=(-W '2') ;;
        *=*) return ;;
        *) offer=(-W 'lowerdir= lowerdir+= upperdir= workdir= snapshots= format= ro rw volatile fsync= reuse_volatile whole_copies userxattr on_exit= redirect_dir= allow_other default_permissions uidmapping= gidmapping= squash_to_root squash_to_uid= squash_to_gid= static_nlink noacl timeout= max_threads= threaded= io_uring= comeback writeback= passthrough log= debug fsname= remount nosuid suid nodev dev noexec exec noatime atime nodiratime diratime relatime norelatime strictatime nostrictatime lazytime nolazytime nosymfollow symfollow sync async dirsync auto noauto user nouser users owner group nofail defaults comment _netdev helper uhelper private user_id group_id silent loud nomand iversion noiversion context fscontext defcontext rootcontext clone_fd max_idle_threads kernel_cache big_writes nonempty splice_read splice_write splice_move max_write fast_ino fast_ino_check door= xino= index= nfs_export= uuid= metacopy= noxattrs= xattr_permissions=') ;;
        esac
        part=${part##*[=:]}
    else
        case $before in
        overlayfs-fuse) [[ $part == */* ]] || { offer=(-W 'ls status sync restart snapshot rollback snapshots run'); compopt +o nospace; } ;;
        --lower) offer=(-d -S /) ;;
        --upper) offer=(-d -S /) ;;
        esac
        if [[ $part == -* ]]; then
            compopt +o nospace
            offer=(-W '-o -f -v --verbose -d --debug --on-exit -s -h --help -V --version --lower --upper --tmp --bind --net --no-net --root --keep --discard --commit --ask --json --metrics --watch --name')
        fi
    fi
    COMPREPLY=()
    while read -r line; do
        COMPREPLY+=("${replaced%"$part"}$line")
    done < <(compgen "${offer[@]}" -- "$part")
}
complete -F _overlayfs_fuse overlayfs-fuse
