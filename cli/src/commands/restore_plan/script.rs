//! A plan as a script. Every value is quoted, so that no name of a database, a path or a Secret is read as anything else; nothing of
//! the target is touched before every file was read and is what was dumped, and what is there already may go or is not in the way. Pure.

use api::{Database, DatabaseCopy, DumpFile, DumpFormat, LiveSnapshot, RepositorySpec};

use super::{
    places::{Needed, Place, place},
    server,
};
use crate::failure::Failure;

/// What a plan is made of.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    pub copy: &'a LiveSnapshot,
    /// The Database of the copy.
    pub of: &'a DatabaseCopy,
    pub repository: &'a RepositorySpec,
    pub namespace: &'a str,
    /// Where it goes, as far as that is known.
    pub target: Option<&'a Database>,
}

/// What a format is restored by, in the order in which that has to be done: roles before what they own, but users after what they may.
struct Means {
    format: DumpFormat,
    /// What it is, for a person.
    what: &'static str,
    /// The command that reads it.
    by: &'static str,
}

/// One file that is restored.
struct Step<'a> {
    file: &'a DumpFile,
    what: &'static str,
    by: &'static str,
}

const ORDER: [Means; 4] = [
    Means {
        format: DumpFormat::PostgreSQLGlobals,
        what: "roles and tablespaces: those that are there already keep their passwords and what they may",
        by: "missing_roles | psql --no-psqlrc --quiet --output /dev/null --dbname template1",
    },
    Means {
        format: DumpFormat::PostgreSQLCustom,
        what: "a database",
        by: "pg_restore --exit-on-error --create --dbname template1",
    },
    Means {
        format: DumpFormat::MariaDBSql,
        what: "all databases",
        by: "server --binary-mode --max-allowed-packet=1G --default-character-set=utf8mb4",
    },
    Means {
        format: DumpFormat::MariaDBUsers,
        what: "users and grants: those that are there already keep their passwords and what they may; what is refused is said, and is no failure",
        by: "missing_users | server --force --binary-mode --default-character-set=utf8mb4 || refused",
    },
];
const INTO_IT: &str = "into_postgres";

/// What the steps are written in.
const WORDS: &str = include_str!("words.sh");

impl Plan<'_> {
    pub fn script(&self) -> Result<String, Failure> {
        let (files, locations) = (self.files()?, self.locations()?);
        let id = quoted(self.copy.status.id.as_deref().unwrap_or_default());
        let mut script = format!("{}{WORDS}{locations}", self.head());
        script += &format!("\n# 2. Every file is read, and has to be what was dumped.\nsnapshot={id}\n");
        for Step { file, .. } in &files {
            script += &format!("checked {} {}\n", quoted(&rooted(&file.path)), quoted(&file.sha256));
        }
        script += "\n# 3. Where it goes, and whether it may: nothing that is there already is in its way, or REPLACE=yes says that it goes.\n";
        script += &server::server(self);
        script += "\n# 4. In this order.\n";
        for Step { file, what, by } in &files {
            let name = file.database.as_deref().map(|name| format!(" ({})", said(name))).unwrap_or_default();
            let before = server::before(file);
            script += &format!("# {what}{name}\n{before}dump {} | {by}\nwhole\n", quoted(&rooted(&file.path)));
        }
        Ok(script + server::last(self.of.engine))
    }

    /// In the order in which they have to be restored, each with what it is and by what.
    fn files(&self) -> Result<Vec<Step<'_>>, Failure> {
        let mut files = Vec::new();
        for file in &self.of.files {
            let at = ORDER.iter().position(|means| means.format == file.format).ok_or_else(|| {
                Failure::new(format!("{} is of a format that this version cannot restore: upgrade", file.path))
            })?;
            let by = match file.database.as_deref() {
                Some(server::IS_ALWAYS_THERE) if file.format == DumpFormat::PostgreSQLCustom => INTO_IT,
                _ => ORDER[at].by,
            };
            files.push((at, Step { file, what: ORDER[at].what, by }));
        }
        files.sort_by_key(|(at, _)| *at);
        Ok(files.into_iter().map(|(_, step)| step).collect())
    }

    fn head(&self) -> String {
        let name = self.copy.metadata.name.as_deref().unwrap_or_default();
        let taken = self.copy.status.taken_at.as_ref().map(|at| format!(", taken at {}", at.0)).unwrap_or_default();
        let (database, engine, version) = (said(&self.of.database), self.of.engine, said(&self.of.version));
        format!(
            "#!/bin/sh\n# Restores Database {database} of copy {}{taken}.\n\
             # By restic (0.14 or later) and the programs of {engine} ({version}, or later) alone. Read it, then run it with sh: it asks\n\
             # for what it needs by environment variables, and touches nothing before it knows that it can and may.\nset -eu\n",
            said(name)
        )
    }

    fn locations(&self) -> Result<String, Failure> {
        let has = |name: &String| self.copy.status.locations.contains(name);
        let places: Vec<(&str, Place)> = self
            .repository
            .locations
            .iter()
            .filter(|location| has(&location.name))
            .filter_map(|location| Some((location.name.as_str(), place(location)?)))
            .collect();
        let Some((first, _)) = places.first() else {
            return Err(Failure::new("no location of the Repository has it: see kubectl still repository scan"));
        };
        let names = places.iter().map(|(name, _)| *name).collect::<Vec<_>>().join("|");
        let mut text = format!(
            "\n# 1. Where it is; FROM says another location: {}.\nfrom={}\nif test -n \"${{FROM:-}}\"; then from=$FROM; fi\ncase $from in\n",
            said(&names),
            quoted(first)
        );
        for (name, place) in &places {
            text += &format!("{})\n{}  ;;\n", quoted(name), self.place(place));
        }
        text += &format!("*) printf 'FROM is one of %s\\n' {} >&2; exit 1 ;;\nesac\n", quoted(&names));
        let encryption = &self.repository.encryption;
        let password = Needed {
            or: &["RESTIC_PASSWORD_FILE", "RESTIC_PASSWORD_COMMAND"],
            ..Needed::new("RESTIC_PASSWORD", "", &encryption.password_secret_ref.name, &encryption.password_key)
        };
        Ok(text + &self.need(&password))
    }

    fn place(&self, place: &Place) -> String {
        let mut text = format!("  export RESTIC_REPOSITORY={}\n", quoted(&place.url));
        for (name, value) in &place.set {
            text += &format!("  export {name}={}\n", quoted(value));
        }
        for needed in &place.needed {
            text += &format!("  {}", self.need(needed));
        }
        let option = |option: &String| match option.strip_prefix('$') {
            Some(variable) => format!("\"${variable}\" "),
            None => format!("{} ", quoted(option)),
        };
        let options: String = place.options.iter().map(option).collect();
        text + &format!("  repository() {{ restic {options}\"$@\"; }}\n")
    }

    pub fn need(&self, needed: &Needed) -> String {
        let Needed { variable, what, secret, key, or } = needed;
        let what = [what, "key", key.as_str(), "of Secret", secret, "in namespace", self.namespace];
        let what = what.into_iter().filter(|part| !part.is_empty()).map(said).collect::<Vec<_>>().join(" ");
        [&["need", *variable, &quoted(&what)], *or].concat().join(" ") + "\n"
    }
}

/// One word of a shell, whatever is in it.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// In a comment: one line.
pub fn said(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// As restic names files of a snapshot.
pub fn rooted(path: &str) -> String {
    format!("/{}", path.trim_start_matches('/'))
}
