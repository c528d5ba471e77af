//! Users, roles and what they may.

use std::{collections::BTreeSet, io::Write};

use api::DumpFormat;

use super::{MOST_OUTPUT, Server};
use crate::{child::Fed, failure::Failure, said::errors};

impl Server<'_> {
    /// Users and roles that are not there; what cannot be done is told.
    pub(super) fn users(&self) -> Result<Vec<String>, Failure> {
        let Some(file) = self.work.copy.files.iter().find(|file| file.format == DumpFormat::MariaDBUsers) else {
            return Ok(Vec::new());
        };
        self.work.told.step("restoring users");
        let there = self.ask(ACCOUNTS)?.lines().map(str::to_owned).collect();
        let sql = missing_users(&self.work.text(&file.path)?, &there);
        let mut command = self.command()?;
        command.arg("--force");
        let (told, hear) = std::sync::mpsc::channel();
        let on_line = Box::new(move |line: &str| drop(told.send(line.to_owned())));
        let mut fed = Fed::spawn(command, on_line).map_err(Failure::bug)?;
        fed.write_all(sql.as_bytes()).ok();
        // With --force it ends badly for one error of many.
        fed.finish(MOST_OUTPUT).ok();
        Ok(errors(hear.iter()))
    }
}

/// Every account and role, as `mariadb-dump` names them: in backticks where something is granted, in quotes where roles are set.
const ACCOUNTS: &str = "SET sql_mode = 'NO_BACKSLASH_ESCAPES'; \
    SELECT CONCAT('`', REPLACE(User, '`', '``'), '`@`', REPLACE(Host, '`', '``'), '`') FROM mysql.global_priv \
    UNION SELECT CONCAT(CHAR(39), User, CHAR(39), '@', CHAR(39), Host, CHAR(39)) FROM mysql.global_priv;";

/// Without what is granted to accounts that are there already, and their default roles: with a grant comes a password
/// (`SHOW GRANTS`, "IDENTIFIED BY PASSWORD"), and theirs stays as it is. A statement has one line.
fn missing_users(sql: &str, there: &BTreeSet<String>) -> String {
    let is_kept = |line: &&str| {
        let granted = line.split_once(" TO `").map(|(_, rest)| format!("`{rest}"));
        let set =
            [" FOR '", " USER '"].iter().find_map(|word| line.split_once(word)).map(|(_, rest)| format!("'{rest}"));
        let of_there =
            |text: &String| there.iter().any(|account| text.strip_prefix(account.as_str()).is_some_and(ends));
        !granted.iter().chain(&set).any(of_there)
    };
    sql.lines().filter(is_kept).flat_map(|line| [line, "\n"]).collect()
}

/// No name goes on there.
fn ends(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with([' ', ';', ','])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_that_are_there_keep_what_they_have() {
        let sql = "CREATE USER IF NOT EXISTS `app`@`%` IDENTIFIED BY PASSWORD '*1';\n\
            GRANT USAGE ON *.* TO `admin`@`%` IDENTIFIED BY PASSWORD '*2' WITH GRANT OPTION;\n\
            GRANT SELECT ON `a``b`.* TO `app`@`%`;\nGRANT `r` TO `ad``min`@`localhost`;\n\
            SET DEFAULT ROLE 'r' FOR 'admin'@'%';\nSET DEFAULT ROLE 'r' FOR 'app'@'%';\nGRANT USAGE ON *.* TO `admin`@`%x`;\n";
        let there = ["`admin`@`%`", "'admin'@'%'", "`ad``min`@`localhost`"].map(str::to_owned).into();
        let passed = missing_users(sql, &there);
        assert!(!passed.contains("*2") && !passed.contains("ad``min") && !passed.contains("FOR 'admin'"), "{passed}");
        assert_eq!(passed.lines().count(), 4, "{passed}");
    }
}
