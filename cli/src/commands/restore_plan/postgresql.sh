ask() { # SQL [DATABASE]
  psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 --dbname "${2:-template1}" --command "$1"
}
free() { # DATABASE SQL [DATABASE THAT IS ASKED]: what is counted is in the way
  name=$1
  shift
  count=$(asked "$@") || exit 1
  if test "$count" = 0 || replaces; then return; fi
  untouched "Database $name is there already" 'REPLACE=yes replaces it: what it holds now is lost.'
}
replaced() { if replaces; then ask "$1"; fi; } # SQL
into_postgres() { # Every new server has that database, and what was copied of it goes into it.
  if replaces; then
    pg_restore --exit-on-error --create --dbname template1
  else
    pg_restore --exit-on-error --dbname postgres
  fi
}
missing_roles() { # SQL, without what it says of roles that are there already: they keep their passwords and what they may
  LC_ALL=C awk '
    NR == FNR { there[$0]; next }
    quote == "" && /^--/ { print; next }
    {
      # A statement may be of several lines: it ends where no quote is open.
      statement = statement $0 "\n"
      for (i = 1; i <= length($0); i++) {
        c = substr($0, i, 1)
        if (c == quote) quote = ""
        else if (quote == "" && (c == "\"" || c == "\047")) quote = c
      }
      if (quote != "") next
      name = statement
      if (sub(/^(CREATE|ALTER) ROLE /, "", name)) {
        if (match(name, /^"([^"]|"")*"/)) {
          name = substr(name, 2, RLENGTH - 2)
          gsub(/""/, "\"", name)
        } else {
          match(name, /^[^ ;]*/)
          name = substr(name, 1, RLENGTH)
        }
        gsub(/\n/, "\001", name)
        if (name in there) statement = ""
      }
      printf "%s", statement
      statement = ""
    }' "$scratch/there" - || broke roles
}
