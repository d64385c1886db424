#!/bin/sh
# A client in shell: curl posts the results as a form, with the session and the ticket as fields of it. Contents are text.
# It has one slot and ends at the first 503.
#
#   client.sh HOST PORT SESSION [WORKER]

set -eu

url=http://$1:$2 session=$3 worker=${4-}
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
newline='
'

# get PATH FILE NAME=VALUE...: the body goes to FILE, the status into $status
get() {
    path=$1 file=$2
    shift 2
    for pair; do
        shift
        set -- "$@" --data-urlencode "$pair"
    done
    status=$(curl -sS --get --output "$file" --write-out '%{http_code}' \
        --data-urlencode "sessionID=$session" "$@" "$url/$path")
}

expect() {
    if [ "$status" != "$1" ]; then
        echo "$2: $status" >&2
        exit 1
    fi
}

# Reads $home/task: sets ticket, timeout and command, writes the inputs, lists the results as FILE=NAME
read_task() {
    section='' content=no
    : >"$home/stdin"
    : >"$home/results"
    rm -rf "$home/folder"
    mkdir "$home/folder"
    while IFS= read -r line || [ -n "$line" ]; do
        if [ $content = yes ]; then
            if [ "$line" = '--end content--' ]; then
                content=no
            else
                # the line feed before the closing line is not content
                printf '%s%s' "$before" "$line" >>"$input"
                before=$newline
            fi
            continue
        fi
        case $line in
            '[Input]' | '[Result]') section=$line ;;
            '--begin content--') content=yes before='' ;;
            Ticket=*) ticket=${line#*=} ;;
            Timeout=*) timeout=${line#*=} ;;
            CommandLine=*) command=${line#*=} ;;
            Name=*) name=${line#*=} ;;
            File=*)
                file=${line#*=}
                if [ "$section" = '[Result]' ]; then
                    echo "$file=$name" >>"$home/results"
                elif [ "$file" = stdin ]; then
                    input=$home/stdin
                else
                    input=$home/folder/$file
                    mkdir -p "$(dirname "$input")"
                    : >"$input"
                fi
                ;;
        esac
    done <"$home/task"
}

# Runs the command: its words are in the shell's own quoting, so eval takes the quotes away and nothing else
run() (
    cd "$home/folder"
    eval "set -- $command"
    timeout --kill-after=1 "$timeout" "$@" <"$home/stdin" >"$home/stdout"
)

# Posts the results as a form; false if one is missing
complete() {
    set -- --form "SessionID=$session" --form "Ticket=$ticket"
    while IFS='=' read -r file name; do
        case $file in
            stdout) file=$home/stdout ;;
            *) file=$home/folder/$file ;;
        esac
        [ -f "$file" ] || return 1
        set -- "$@" --form "$name=@\"$file\""
    done <"$home/results"
    status=$(curl -sS --output "$home/reply" --write-out '%{http_code}' "$@" "$url/complete")
    expect 200 complete
}

get config "$home/config"
expect 200 config

if [ -n "$worker" ]; then
    platform=$(uname -s)-$(uname -m)
    mkdir "$home/bin"
    get worker "$home/bin/$worker" "name=$worker" "platform=$(echo "$platform" | tr '[:upper:]' '[:lower:]')"
    expect 200 worker
    chmod 700 "$home/bin/$worker"
    PATH=$home/bin:$PATH
fi

while :; do
    get task "$home/task" ${worker:+"worker=$worker"}
    [ "$status" = 503 ] && exit 0
    expect 200 task
    read_task
    if ! { run && complete; }; then
        get failed "$home/reply" "ticket=$ticket"
        expect 200 failed
    fi
done
