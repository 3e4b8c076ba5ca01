//! The order of the rooms, and no circle between two files or between two folders of a room.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms, from the bottom up. A room imports only rooms that stand before it.
const ROOMS: [&str; 18] = [
    "domain",
    "config",
    "http_client",
    "log",
    "secrets",
    "lambda",
    "platform",
    "request",
    "caller",
    "seal",
    "table",
    "idempotency",
    "limiter",
    "events",
    "token",
    "install",
    "app",
    "relay",
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The modules of this crate by path (`token::refresh`), each with the code that is not a test.
fn modules() -> BTreeMap<String, String> {
    fn read(folder: &Path, modules: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                read(&entry, modules);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                let name = entry.strip_prefix(source()).expect("below src").with_extension("");
                let parts: Vec<_> = name.iter().map(|part| part.to_str().expect("UTF-8")).collect();
                let name = parts.join("::");
                let code = fs::read_to_string(&entry).expect("a file");
                // A file's tests stand at its end. A comment may name any room: a link in it is no import.
                let tests = code.rfind("\n#[cfg(test)]\n").filter(|at| code[*at..].contains("mod tests {"));
                let code = code[..tests.unwrap_or(code.len())].lines();
                let code = code.filter(|line| !line.trim_start().starts_with("//"));
                modules.insert(name.trim_end_matches("::mod").to_owned(), code.collect::<Vec<_>>().join("\n"));
            }
        }
    }
    let mut modules = BTreeMap::new();
    read(&source(), &mut modules);
    modules.retain(|name, _| name != "lib" && name != "rooms");
    modules
}

/// The paths that a module names with `crate::`, `super::` and `self::`, from the crate's root. Braces are opened.
fn named(module: &str, code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let mut base: Vec<&str> = if start == "crate::" { vec![] } else { module.split("::").collect() };
            let mut rest = &code[at..];
            while let Some(after) = rest.strip_prefix("super::") {
                base.pop();
                rest = after;
            }
            let rest = rest.trim_start_matches("crate::").trim_start_matches("self::");
            let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
            let path = rest[..end].trim_end_matches(':');
            let opened = rest[end..].strip_prefix('{').and_then(|inner| inner.split_once('}'));
            let leaves = opened.map_or(vec![""], |(inner, _)| inner.split(',').map(str::trim).collect());
            for leaf in leaves {
                let parts = base.iter().copied().chain(path.split("::")).chain(leaf.split("::"));
                paths.push(parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("::"));
            }
        }
    }
    paths
}

/// The module that a path leads into: the longest one that it begins with.
fn target<'a>(modules: &'a BTreeMap<String, String>, path: &str) -> Option<&'a str> {
    let names = modules.keys().filter(|name| path == *name || path.starts_with(&format!("{name}::")));
    names.max_by_key(|name| name.len()).map(String::as_str)
}

/// For each module, the others that it imports.
fn imports(modules: &BTreeMap<String, String>) -> BTreeMap<&str, BTreeSet<&str>> {
    let of = |name: &str, code: &str| {
        let all = named(name, code).into_iter().filter_map(|path| target(modules, &path)).collect::<BTreeSet<_>>();
        all.into_iter().filter(|other| *other != name).collect()
    };
    modules.iter().map(|(name, code)| (name.as_str(), of(name, code))).collect()
}

fn room(module: &str) -> &str {
    module.split("::").next().unwrap_or(module)
}

#[test]
fn a_room_imports_only_rooms_below_it() {
    let place = |room: &str| {
        ROOMS
            .iter()
            .position(|name| *name == room)
            .unwrap_or_else(|| panic!("`{room}` is a room without a place in ROOMS"))
    };
    let modules = modules();
    for (module, imported) in imports(&modules) {
        for other in imported {
            let (from, to) = (room(module), room(other));
            assert!(
                place(from) >= place(to),
                "`{from}` stands below `{to}` and must not import it: {module} imports {other}"
            );
        }
    }
}

/// Follows the imports depth first. `way` is the chain of files that led here.
fn visit<'a>(
    way: &mut Vec<&'a str>,
    imports: &BTreeMap<&'a str, BTreeSet<&'a str>>,
    done: &mut BTreeSet<&'a str>,
    related: &dyn Fn(&str, &str) -> bool,
) {
    let last = *way.last().expect("not empty");
    for next in &imports[last] {
        if related(last, next) {
            continue;
        }
        if let Some(begin) = way.iter().position(|before| before == next) {
            panic!("these files import each other in a circle: {} -> {next}", way[begin..].join(" -> "));
        }
        if done.insert(next) {
            way.push(next);
            visit(way, imports, done, related);
            way.pop();
        }
    }
}

#[test]
fn no_two_files_import_each_other() {
    let modules = modules();
    let imports = imports(&modules);
    // A module and its own parts are one: the parts use what their parent declares.
    let related = |a: &str, b: &str| a.starts_with(&format!("{b}::")) || b.starts_with(&format!("{a}::"));
    let mut done = BTreeSet::new();
    for module in imports.keys() {
        if done.insert(*module) {
            visit(&mut vec![*module], &imports, &mut done, &related);
        }
    }
}

/// The folder or file of a room that a module is in: `token::refresh` for `token::refresh::commit`. `None` for the room's
/// own file.
fn part(module: &str) -> Option<&str> {
    let (room, rest) = module.split_once("::")?;
    let name = rest.split("::").next().unwrap_or(rest);
    Some(&module[..room.len() + 2 + name.len()])
}

#[test]
fn no_two_folders_of_a_room_import_each_other() {
    let modules = modules();
    let mut between: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (module, imported) in imports(&modules) {
        let Some(from) = part(module) else { continue };
        let others = imported.into_iter().filter_map(part).filter(|to| *to != from && room(to) == room(from));
        between.entry(from).or_default().extend(others);
    }
    for to in between.values().flatten().copied().collect::<Vec<_>>() {
        between.entry(to).or_default();
    }
    let mut done = BTreeSet::new();
    for part in between.keys() {
        if done.insert(*part) {
            visit(&mut vec![*part], &between, &mut done, &|_, _| false);
        }
    }
}

#[test]
fn the_reader_of_imports_sees_all_forms() {
    let code = "use super::a::{B, c::D};\nuse crate::x::Y;\nfn f() { self::g(super::super::h()) }";
    let mut found = named("room::inner", code);
    found.sort();
    assert_eq!(found, ["h", "room::a::B", "room::a::c::D", "room::inner::g", "x::Y"]);
}
