//! What programs write to standard error, as it may leave this process: what is wrong, and with which table, but nothing of what is
//! in it. Messages, Events and logs are read by many who may not read the database.

/// Of one program, line by line. A value may have several lines, so what follows a line that was curtailed goes with it, up to the
/// next that the program begins by its own name.
#[derive(Debug, Default)]
pub(crate) struct Said {
    is_within_a_value: bool,
}

/// Of a line, and of a list of them.
const LONGEST_LINE: usize = 400;
const MOST_LINES: usize = 16;
/// As `psql`, `pg_dump` and their like, `mariadb` and `mariadb-dump` begin what is of themselves.
const SPEAKERS: [&str; 6] = ["pg_", "psql:", "mariadb", "mysql", "ERROR ", "FATAL"];
/// Fields of a message of PostgreSQL's that have values or statements in them, and nothing else (libpq, `PQresultVerboseErrorField`).
const WITHOUT: [&str; 6] = ["LINE ", "QUERY:", "STATEMENT:", "LOCATION:", "Command was:", "Query was:"];
/// How a value begins, and what follows it. PostgreSQL quotes names, too, but with a word before; MariaDB quotes all alike.
const VALUES: [(&str, &str); 10] = [
    (": \"", "\n"),
    (": »", "\n"),
    (": „", "\n"),
    (": «", "\n"),
    (" value \"", "\""),
    (" near \"", "\""),
    (" near '", "\n"),
    (" entry '", "' for key "),
    (" value: '", "' for column "),
    (" value '", "' for "),
];
const LEFT_OUT: char = '…';

impl Said {
    /// What of the line may be told; nothing, if it is a value or of one.
    pub(crate) fn line(&mut self, line: &str) -> Option<String> {
        // As `--verbose` tells what is done, and as a client shows the statement that failed.
        if line.starts_with("-- ") || line.starts_with("----") {
            self.is_within_a_value |= line.starts_with("----");
            return None;
        }
        let is_begun = SPEAKERS.iter().any(|speaker| line.starts_with(speaker));
        let without = WITHOUT.iter().filter_map(|field| line.find(field)).min();
        let told = if let Some(at) = without.filter(|at| *at == 0 || is_begun) {
            line[..at].to_owned()
        } else if let Some(detail) = line.strip_prefix("DETAIL:") {
            // `Key (id)=(7) already exists.`
            let end = detail.find(")=(").map(|at| at + 1).or_else(|| detail.find(['(', '"', '\'', '»', '„', '«']));
            format!("DETAIL:{}", &detail[..end.unwrap_or(detail.len())])
        } else if let Some(context) = line.strip_prefix("CONTEXT:") {
            // `COPY orders, line 3, column id: "7"`
            format!("CONTEXT:{}", context.split([':', '"', '»', '„', '«']).next().unwrap_or_default())
        } else if is_begun || line.starts_with("HINT:") || !self.is_within_a_value {
            without_values(line)
        } else {
            return None;
        };
        self.is_within_a_value = told != line;
        let told: String = told.trim_end().chars().take(LONGEST_LINE).collect();
        Some(told).filter(|told| !told.is_empty())
    }
}

/// The errors among the lines of one program.
pub(crate) fn errors(lines: impl Iterator<Item = String>) -> Vec<String> {
    let mut said = Said::default();
    lines.filter_map(|line| said.line(&line)).filter(|line| line.contains("ERROR")).take(MOST_LINES).collect()
}

fn without_values(line: &str) -> String {
    VALUES.iter().fold(line.to_owned(), |line, (before, after)| {
        let Some(begin) = line.find(before).map(|at| at + before.len()) else { return line };
        // The last: a value may have quotes in it.
        let end = line.rfind(after).filter(|end| *end >= begin).unwrap_or(line.len());
        format!("{}{LEFT_OUT}{}", &line[..begin], &line[end..])
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(text: &str) -> String {
        let mut said = Said::default();
        text.lines().filter_map(|line| said.line(line)).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn what_is_wrong_is_told_and_no_row() {
        let cases = [
            (
                "pg_restore: error: COPY failed for table \"orders\": ERROR:  duplicate key value violates unique constraint \"orders_pkey\"\n\
                 DETAIL:  Key (email)=(secret@x\nsecret) already exists.\nCONTEXT:  COPY orders, line 2",
                "pg_restore: error: COPY failed for table \"orders\": ERROR:  duplicate key value violates unique constraint \"orders_pkey\"; \
                 DETAIL:  Key (email); CONTEXT:  COPY orders, line 2",
            ),
            (
                "pg_restore: error: COPY failed for table \"orders\": ERROR:  invalid input syntax for type integer: \"secret\nsecret\"\n\
                 CONTEXT:  COPY orders, line 1, column id: \"secret\nHINT secret\"",
                "pg_restore: error: COPY failed for table \"orders\": ERROR:  invalid input syntax for type integer: \"…; \
                 CONTEXT:  COPY orders, line 1, column id",
            ),
            (
                "pg_restore: while PROCESSING TOC:\npg_restore: from TOC entry 215; 1259 16385 TABLE t postgres\n\
                 pg_restore: error: could not execute query: ERROR:  type \"x\" does not exist\nLINE 2: secret\n   ^\n\
                 Command was: CREATE USER MAPPING FOR u SERVER s OPTIONS (\n    password 'secret'\n);",
                "pg_restore: while PROCESSING TOC:; pg_restore: from TOC entry 215; 1259 16385 TABLE t postgres; \
                 pg_restore: error: could not execute query: ERROR:  type \"x\" does not exist",
            ),
            (
                "psql:<stdin>:3: ERROR:  55006: database \"shop\" is being accessed by other users\n\
                 DETAIL:  There is 1 other session using the database.\nLOCATION:  RenameDatabase, dbcommands.c:1900",
                "psql:<stdin>:3: ERROR:  55006: database \"shop\" is being accessed by other users; \
                 DETAIL:  There is 1 other session using the database.",
            ),
            (
                "psql: error: connection to server at \"127.0.0.1\", port 1 failed: FATAL:  database \"x\" does not exist",
                "psql: error: connection to server at \"127.0.0.1\", port 1 failed: FATAL:  database \"x\" does not exist",
            ),
            (
                "pg_restore: error: COPY failed for table \"t\": ERROR:  value \"99secret\" is out of range for type integer\nDETAIL:  Failing row contains (1, secret).",
                "pg_restore: error: COPY failed for table \"t\": ERROR:  value \"…\" is out of range for type integer; DETAIL:  Failing row contains",
            ),
            (
                "ERROR 1062 (23000) at line 45: Duplicate entry 'it's secret' for key 'PRIMARY'",
                "ERROR 1062 (23000) at line 45: Duplicate entry '…' for key 'PRIMARY'",
            ),
            (
                "--------------\nINSERT INTO t VALUES ('secret')\n--------------\n\n\
                 ERROR 1366 (22007) at line 3: Incorrect integer value: 'secret' for column `shop`.`t`.`id` at row 1",
                "ERROR 1366 (22007) at line 3: Incorrect integer value: '…' for column `shop`.`t`.`id` at row 1",
            ),
            (
                "ERROR 1064 (42000) at line 3: You have an error in your SQL syntax; check the manual for the right syntax to use near 'secret\nsecret' at line 1\n\
                 mariadb: it goes on",
                "ERROR 1064 (42000) at line 3: You have an error in your SQL syntax; check the manual for the right syntax to use near '…; mariadb: it goes on",
            ),
            (
                "pg_dump: error: query failed: ERROR:  x\npg_dump: detail: Query was: SELECT 'secret'",
                "pg_dump: error: query failed: ERROR:  x; pg_dump: detail:",
            ),
            (
                "psql:<stdin>:7: ERROR:  42601: syntax error at or near \"secret\"\nLINE 1: ALTER ROLE app PASSWORD secret",
                "psql:<stdin>:7: ERROR:  42601: syntax error at or near \"…\"",
            ),
            (
                "-- Retrieving table structure for table secret...\nmariadb-dump: Error 2013: Lost connection to server during query when dumping table `t` at row: 5",
                "mariadb-dump: Error 2013: Lost connection to server during query when dumping table `t` at row: 5",
            ),
            (
                "pg_dump: error while loading shared libraries: libpq.so.5",
                "pg_dump: error while loading shared libraries: libpq.so.5",
            ),
        ];
        for (text, wanted) in cases {
            assert_eq!(told(text), wanted);
        }
    }

    proptest! {
        #[test]
        fn no_value_gets_through(value in "[ -~\n]{0,40}") {
            let value = format!("s3cr3t{value}s3cr3t");
            for text in [
                format!("pg_restore: error: COPY failed for table \"t\": ERROR:  invalid input syntax for type integer: \"{value}\"\nCONTEXT:  COPY t, line 1, column id: \"{value}\""),
                format!("pg_restore: error: x\nDETAIL:  Key (a, b)=({value}) already exists."),
                format!("ERROR 1062 (23000) at line 1: Duplicate entry '{value}' for key 'PRIMARY'"),
                format!("ERROR 1064 (42000) at line 1: right syntax to use near '{value}' at line 1"),
            ] {
                let told = told(&text);
                prop_assert!(!told.contains("s3cr3t"), "{told}");
            }
        }
    }
}
