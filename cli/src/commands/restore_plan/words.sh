
need() { # VARIABLE WHAT [VARIABLE THAT DOES AS WELL]...
  variable=$1 what=$2
  shift 2
  for one in "$variable" "$@"; do
    if eval "test -n \"\${$one:-}\""; then export "$one"; return; fi
  done
  printf 'set %s: %s\n' "$variable" "$what" >&2
  exit 1
}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# A pipe ends as its last program does, so what broke off before that is written down.
broke() { echo "$1" >>"$scratch/broken"; }
dump() { repository dump -- "$snapshot" "$1" || broke "$1"; } # FILE
whole() { if test -s "$scratch/broken"; then echo 'it broke off: what was restored last is not whole' >&2; exit 1; fi; }
untouched() { printf '%s. Nothing was touched. %s\n' "$1" "$2" >&2; exit 1; } # WHY WHAT CAN BE DONE
checked() { # FILE SHA256
  if test "$(repository dump -- "$snapshot" "$1" | sha256sum | cut -d ' ' -f 1)" = "$2"; then return; fi
  untouched "$1 cannot be read as it was dumped" 'Try another location.'
}
asked() { ask "$@" || untouched 'The server cannot be asked' 'Its own words are above.'; } # SQL [DATABASE]
replaces() { test "${REPLACE:-}" = yes; }
