# Completion of overlayfs. scripts/pages writes this file.

_overlayfs() {
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
        redirect_dir=*) offer=(-W 'on off follow') ;;
        on_exit=*) offer=(-W 'preserve discard commit commit-atomic') ;;
        *=*) return ;;
        *) offer=(-W 'lowerdir= lowerdir+= upperdir= workdir= snapshots= ro rw volatile reuse_volatile whole_copies userxattr redirect_dir= on_exit=') ;;
        esac
        part=${part##*[=:]}
    else
        case $before in
        overlayfs) [[ $part == */* ]] || { offer=(-W 'status sync snapshot rollback snapshots run'); compopt +o nospace; } ;;
        --lower) offer=(-d -S /) ;;
        --upper) offer=(-d -S /) ;;
        --work) offer=(-d -S /) ;;
        --snapshots) offer=(-d -S /) ;;
        esac
        if [[ $part == -* ]]; then
            compopt +o nospace
            offer=(-W '--lower --upper --work --snapshots --read-only --volatile --reuse-volatile --whole-copies --trust-layers --no-redirects --on-exit --replace --detach --hand-to-init --unprotected-hardlinks -v --verbose -h --help -V --version -o --scheme --net --no-net --keep --discard --commit --ask --json --metrics --watch --name')
        fi
    fi
    COMPREPLY=()
    while read -r line; do
        COMPREPLY+=("${replaced%"$part"}$line")
    done < <(compgen "${offer[@]}" -- "$part")
}
complete -F _overlayfs overlayfs
