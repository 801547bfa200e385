//! Completions for shells.

use std::collections::HashSet;

use overlayfs::usage::{Explained, Program};

/// The kind of the value behind an option.
enum Value {
    None,
    Directory,
    File,
    /// Mount options, separated by commas.
    List,
    OneOf(Vec<&'static str>),
    Other,
}

/// One option: its name, its value, and its purpose in one sentence.
struct Completed {
    name: &'static str,
    value: Value,
    about: String,
}

/// Returns the options that are words of the command line, or those that are items of a list.
fn options(program: &Program, are_words: bool) -> Vec<Completed> {
    let all = program.groups.iter().flat_map(|group| group.options);
    let all = all.flat_map(|option| option.forms().map(|(name, behind)| completed(option, name, behind)));
    // An option like `x-...` stands for many. One of several subcommands comes once.
    let mut met = HashSet::new();
    all.filter(|option| option.name.starts_with('-') == are_words && !option.name.ends_with("..."))
        .filter(|option| met.insert(option.name))
        .collect()
}

fn completed(option: &Explained, name: &'static str, behind: &'static str) -> Completed {
    let value = match behind.trim_start_matches(['=', ' ']) {
        "" => Value::None,
        "LIST" => Value::List,
        "FILE" => Value::File,
        value if value.starts_with("DIR") => Value::Directory,
        value if value.starts_with(|c: char| c.is_ascii_uppercase()) => Value::Other,
        value => Value::OneOf(value.split('|').collect()),
    };
    let sentences = if option.brief.is_empty() { option.more } else { option.brief };
    let first = sentences.split_once(". ").map_or(sentences, |(first, _)| first);
    Completed { name, value, about: first.replace('`', "").trim_end_matches('.').to_owned() }
}

fn head(program: &Program) -> String {
    format!("# Completion of {}. scripts/pages writes this file.", program.name)
}

/// Returns the names of the options. Items of a list have a `=` if they take a value.
fn names(options: &[Completed]) -> String {
    let name = |option: &Completed| match option.value {
        Value::None => option.name.to_owned(),
        _ if option.name.starts_with('-') => option.name.to_owned(),
        _ => format!("{}=", option.name),
    };
    options.iter().map(name).collect::<Vec<_>>().join(" ")
}

pub fn bash(program: &Program) -> String {
    let (words, items) = (options(program, true), options(program, false));
    // Returns a case for each option with a value: the arguments of `compgen`.
    let cases = |options: &[Completed], behind: &str| {
        let mut cases = String::new();
        for option in options {
            let offer = match &option.value {
                Value::Directory => "-d -S /".to_owned(),
                Value::File => "-f".to_owned(),
                Value::OneOf(values) => format!("-W '{}'", values.join(" ")),
                Value::None | Value::List | Value::Other => continue,
            };
            cases.push_str(&format!("        {}{behind}) offer=({offer}) ;;\n", option.name));
        }
        cases
    };
    format!(
        r#"{head}

_{function}() {{
    local line=${{COMP_LINE:0:COMP_POINT}} replaced=${{COMP_WORDS[COMP_CWORD]}} before part offer=(-d -S /)
    # bash splits words at '=' and ':' too, and replaces only what is behind them.
    [[ $replaced == [=:] ]] && replaced=
    part=${{line##* }}
    before=${{line%"$part"}} before=${{before%% }} before=${{before##* }}
    compopt -o nospace
    if [[ $before == -o ]]; then
        part=${{part##*,}}
        case $part in
{item_cases}        *=*) return ;;
        *) offer=(-W '{item_names}') ;;
        esac
        part=${{part##*[=:]}}
    else
        case $before in
{command_case}{word_cases}        esac
        if [[ $part == -* ]]; then
            compopt +o nospace
            offer=(-W '{word_names}')
        fi
    fi
    COMPREPLY=()
    while read -r line; do
        COMPREPLY+=("${{replaced%"$part"}}$line")
    done < <(compgen "${{offer[@]}}" -- "$part")
}}
complete -F _{function} {name}
"#,
        head = head(program),
        function = program.name.replace('-', "_"),
        item_cases = cases(&items, "=*"),
        item_names = names(&items),
        command_case = command_case(program),
        word_cases = cases(&words, ""),
        word_names = names(&words),
        name = program.name,
    )
}

/// Returns the case of bash for the name of a subcommand.
fn command_case(program: &Program) -> String {
    match command_names(program) {
        names if names.is_empty() => String::new(),
        names => format!(
            "        {}) [[ $part == */* ]] || {{ offer=(-W '{names}'); compopt +o nospace; }} ;;\n",
            program.name
        ),
    }
}

/// Whether the first word is a subcommand in each form of the command line.
fn needs_command(program: &Program) -> bool {
    program.forms[0].starts_with("COMMAND")
}

fn command_names(program: &Program) -> String {
    program.commands.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
}

pub fn zsh(program: &Program) -> String {
    let quoted = |text: &str| text.replace('\'', "'\\''").replace('[', "\\[").replace(']', "\\]").replace(':', "\\:");
    let action = |value: &Value| match value {
        Value::None => String::new(),
        Value::Directory => ":directory:_files -/".to_owned(),
        Value::File => ":file:_files".to_owned(),
        Value::List => ":mount options:->list".to_owned(),
        Value::OneOf(values) => format!(":value:({})", values.join(" ")),
        Value::Other => ":value:".to_owned(),
    };
    let spec = |option: &Completed| {
        let times = if matches!(option.value, Value::List | Value::Directory) { "*" } else { "" };
        // For items of a list, zsh has no mark for an option that may come again.
        let times = if option.name.starts_with('-') { times } else { "" };
        format!("'{times}{}[{}]{}'", option.name.replace('+', "\\+"), quoted(&option.about), action(&option.value))
    };
    let function = format!("_{}_commands", program.name.replace('-', "_"));
    let described = |(name, effect): &(&str, &str)| {
        let effect = effect.trim_end_matches('.').replace('`', "").replace('\'', "'\\''");
        format!("        '{name}:{effect}'\n")
    };
    let commands = match program.commands {
        [] => String::new(),
        all => {
            let all: String = all.iter().map(described).collect();
            format!("{function}() {{\n    local -a commands=(\n{all}    )\n    _describe command commands\n}}\n\n")
        }
    };
    let first_word = match program.commands {
        [] => String::new(),
        _ if needs_command(program) => format!("        '1:command:{function}' \\\n"),
        _ => format!("        '1: : _alternative \"commands:command:{function}\" \"dirs:directory:_files -/\"' \\\n"),
    };
    let lines = |are_words| options(program, are_words).iter().map(spec).collect::<Vec<_>>().join(" \\\n        ");
    format!(
        r#"#compdef {name}
{head}

{commands}local state line
_arguments -s \
        {words} \
{first_word}        '*:directory:_files -/'
if [[ $state == list ]]; then
    _values -s , 'mount option' \
        {items}
fi
"#,
        name = program.name,
        head = head(program),
        words = lines(true),
        items = lines(false),
    )
}

pub fn fish(program: &Program) -> String {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
    let mut page = format!("{}\n\n", head(program));
    let list = format!("__{}_list", program.name.replace('-', "_"));
    let items = options(program, false);
    page.push_str(&format!("set -g {list}"));
    for item in &items {
        let name = names(std::slice::from_ref(item));
        page.push_str(&format!(" \\\n    {name}\\t'{}'", quoted(&item.about)));
    }
    page.push_str("\n\n");
    for (name, effect) in program.commands {
        let effect = quoted(effect.trim_end_matches('.'));
        page.push_str(&format!("complete -c {} -n __fish_use_subcommand -x -a {name} -d '{effect}'\n", program.name));
    }
    for word in options(program, true) {
        let name = match word.name.strip_prefix("--") {
            Some(long) => format!("-l {long}"),
            None => format!("-s {}", &word.name[1..]),
        };
        let value = match word.value {
            Value::None => String::new(),
            Value::Directory => " -x -a '(__fish_complete_directories)'".to_owned(),
            Value::File => " -r".to_owned(),
            Value::List => format!(" -x -a '(__fish_append , ${list})'"),
            Value::OneOf(values) => format!(" -x -a '{}'", values.join(" ")),
            Value::Other => " -x".to_owned(),
        };
        page.push_str(&format!("complete -c {} {name}{value} -d '{}'\n", program.name, quoted(&word.about)));
    }
    page
}
