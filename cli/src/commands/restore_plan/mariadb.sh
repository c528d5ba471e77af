ask() { server --batch --skip-column-names --default-character-set=utf8mb4 --execute "$1"; } # SQL
look_for() { # FILE THAT IS READ: asks, in SQL, which databases of it are there
  LC_ALL=C awk '
    BEGIN {
      head = "-- Current Database: `"
      # So that a name is in its quotes whatever it has, but quotes, which are doubled.
      print "SET sql_mode = \047NO_BACKSLASH_ESCAPES\047;"
      printf "SELECT schema_name FROM information_schema.schemata WHERE schema_name IN (\047\047"
    }
    before == "--" && index($0, head) == 1 {
      name = substr($0, length(head) + 1)
      # One that is of several lines cannot be told.
      if (!sub(/`$/, "", name)) { status = 1; exit }
      gsub(/``/, "`", name)
      gsub(/\047/, "\047\047", name)
      printf ", \047%s\047", name
    }
    { before = $0 }
    END { if (!status) print ");"; exit status }' || broke "$1"
}
in_the_way() { # FILE: which databases of it are there
  dump "$1" | look_for "$1" | server --batch --skip-column-names --binary-mode --default-character-set=utf8mb4
}
free() { # FILE
  if replaces; then return; fi
  names=$(in_the_way "$1") || broke "$1"
  if test -s "$scratch/broken"; then untouched "Which databases are in $1 or are there already cannot be told" ''; fi
  if test -z "$names"; then return; fi
  untouched "There already: $names" 'REPLACE=yes replaces their tables of the same names: what these hold now is lost.'
}
some=
refused() { ask 'SELECT 1' >/dev/null || exit 1; some=yes; }
missing_users() { # SQL, without what it grants to users that are there already, and their passwords
  LC_ALL=C awk -F '\t' '
    NR == FNR { there[$1]; there[$2]; next }
    {
      account = ""
      if (match($0, / TO `([^`]|``)*`@`([^`]|``)*`/)) account = substr($0, RSTART + 4, RLENGTH - 4)
      else if (match($0, / (FOR|USER) \047[^\047]*\047@\047[^\047]*\047/)) {
        account = substr($0, RSTART, RLENGTH)
        sub(/^ (FOR|USER) /, "", account)
      }
      if (account == "" || !(account in there)) print
    }' "$scratch/there" - || broke users
}
