#!/bin/sh
# The house rules (CONTRIBUTING.md) that can be read off the sources.
#   tests/check_sources.sh [FOLDER OF THE PROJECT]
# Who may include whom, by the #include lines of all sources but tests/ and dev/.
# inference/ and ops/ may serve one program alone: they are the room of infer, and one op per file.
set -eu
cd "${1:-$(dirname "$0")/..}"
awk '
BEGIN {
    knows["runtime"] = " runtime "
    knows["io"] = " io runtime "
    knows["ops"] = " ops runtime "
    knows["model"] = " model ops io runtime "
    knows["inference"] = " inference model ops io runtime "
    knows["data"] = " data io runtime "
    knows["a program"] = " data inference model ops io runtime "
    knows["train"] = knows["a program"] "train "
}
function room(file) {
    if (file in program) return "a program"
    if (file == "tapernorm.cuh") return "ops"
    return file ~ "/" ? substr(file, 1, index(file, "/") - 1) : "no room"
}
function stem(file) { sub(/\.[a-z]*$/, "", file); return file }
function error(text) { print text > "/dev/stderr"; failed = 1 }

# A .cpp file belongs to the header of its name (x_more.cpp to x.h too), else to the headers of its room that it includes.
function belongs(source,    list, n, i, own) {
    n = split(includes[source], list, " ")
    for (i = 1; i <= n; i++) if (index(source, stem(list[i])) == 1) own = list[i]
    for (i = 1; i <= n; i++)
        if (own ? list[i] == own : room(list[i]) == room(source)) sources[list[i]] = sources[list[i]] " " source
}
# Marks all that the program is made of: what it includes, and the .cpp files that belong to these headers.
function reach(file, program,    list, n, i) {
    if ((file, program) in reached) return
    reached[file, program] = 1
    n = split(includes[file] sources[file], list, " ")
    for (i = 1; i <= n; i++) reach(list[i], program)
}

FNR == 1 { files[++count] = FILENAME }
# A JSON value that is null becomes an object or a list when something is put into it; where memory ends just then, the library
# (nlohmann 3.11) ends the program.
/\["[a-z_]+"\](\[|\.(push|emplace)_back)/ { error(FILENAME ":" FNR ": make the JSON list or object first, then put it there") }
/^int main\(/ { program[FILENAME] = 1 }
/^[ \t]*#[ \t]*include[ \t]*["<]/ {
    split($0, part, "[\"<>]")
    if ($0 ~ "<" && !(room(part[2]) in knows)) next  # the system or a library
    includes[FILENAME] = includes[FILENAME] " " part[2]
    line[FILENAME, part[2]] = FNR
}
END {
    for (i = 1; i <= count; i++) {
        file = files[i]
        if (file ~ "/" && !(room(file) in knows)) error(file ": a folder without a rule (CONTRIBUTING.md, House rules)")
        may = file == "train_gpt.cu" ? knows["train"] : knows[room(file)]
        n = split(includes[file], list, " ")
        for (k = 1; k <= n; k++)
            if (!index(may, " " room(list[k]) " "))
                error(file ":" line[file, list[k]] ": includes " list[k] "; " room(file) " may include:" may)
        if (file ~ /\.cpp$/ && !(file in program)) belongs(file)
    }
    for (p in program) reach(p, p)
    for (i = 1; i <= count; i++) {
        file = files[i]
        users = 0
        for (p in program) if ((file, p) in reached) { users++; user = p }
        if (file ~ /^(io|model|runtime)\// && users == 1)
            error(file ": only " user " uses it; what one program alone uses lives with that program")
    }
    exit failed
}' $(find . -type f \( -name '*.h' -o -name '*.hpp' -o -name '*.cc' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu' \) |
    sed 's,^\./,,' | grep -vE '^(tests|dev|build[^/]*|scratch)/' | sort)

# Every main, of benchmarks too, begins with what all programs begin with.
for file in $(grep -rlE '^int main\(' --include='*.cpp' --include='*.cu' . --exclude-dir='build*' --exclude-dir=scratch | sort); do
    grep -A 2 '^int main(' "$file" | grep -qE '(start_program|flush_denormals)\(\);' && continue
    echo "$file: main must begin with start_program() (runtime/exit_status.h)" >&2
    exit 1
done

# Two types of one name are not in two files: of the functions that both give rise to, the linker takes one, silently (the ODR).
awk '
FNR == 1 { anonymous = 0; space = of_template = "" }
/^namespace \{/ { anonymous = 1 }
/^}  \/\/ namespace$/ { anonymous = 0 }
/^namespace [a-z]/ { space = $2 "::" }
/^}  \/\/ namespace [a-z]/ { space = "" }
/^template <[^>]*[a-zA-Z].*>$/ { of_template = $0 " "; next }
{ text = of_template $0; of_template = "" }
anonymous || text ~ /^template <>/ { next }
match(text, /^(template <.*> )?(struct|class|union|enum|enum class) [A-Za-z_0-9]+( final)?( :.*)? \{/) {
    name = text
    sub(/^(template <.*> )?(struct|class|union|enum|enum class) /, "", name)
    sub(/[^A-Za-z_0-9].*/, "", name)
    name = space name
    if (name in first && first[name] != FILENAME) {
        print FILENAME ":" FNR ": " name " is another type in " first[name] "; put one into an unnamed namespace" > "/dev/stderr"
        failed = 1
    }
    first[name] = FILENAME
}
END { exit failed }' $(find . -type f \( -name '*.h' -o -name '*.hpp' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu' \) |
    sed 's,^\./,,' | grep -vE '^(build[^/]*|scratch)/' | sort)
