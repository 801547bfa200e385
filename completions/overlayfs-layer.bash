# Completion of overlayfs-layer. scripts/pages writes this file.

_overlayfs_layer() {
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
        redirect_dir=*) offer=(-W 'on off follow') ;;
        on_exit=*) offer=(-W 'preserve discard commit commit-atomic') ;;
        *=*) return ;;
        *) offer=(-W 'lowerdir= lowerdir+= upperdir= workdir= ro rw volatile reuse_volatile whole_copies userxattr redirect_dir= on_exit=') ;;
        esac
        part=${part##*[=:]}
    else
        case $before in
        overlayfs-layer) [[ $part == */* ]] || { offer=(-W 'diff commit discard flatten vacuum export import info convert'); compopt +o nospace; } ;;
        --lower) offer=(-d -S /) ;;
        --upper) offer=(-d -S /) ;;
        --work) offer=(-d -S /) ;;
        --from) offer=(-d -S /) ;;
        --into) offer=(-d -S /) ;;
        --format) offer=(-W 'tar tar.gz tar.zst') ;;
        --to) offer=(-W 'oci kernel') ;;
        esac
        if [[ $part == -* ]]; then
            compopt +o nospace
            offer=(-W '--lower --upper --work -q --quiet -h --help -V --version -o --from --content --stat --json -0 --dry-run --resume --include --exclude --into --atomic --keep-old --ignore-times --format --oci-layout --base --no-devices --owner --rootless --limit --to --deref')
        fi
    fi
    COMPREPLY=()
    while read -r line; do
        COMPREPLY+=("${replaced%"$part"}$line")
    done < <(compgen "${offer[@]}" -- "$part")
}
complete -F _overlayfs_layer overlayfs-layer
