# What the jobs of `python -m tests.chaos` run: sh job.sh DIRECTORY EXIT_CODES STEP...
#
# Steps: o:FILE and e:FILE print a file of DIRECTORY/data to stdout and stderr, s:SECONDS sleeps,
# deaf ignores SIGTERM from here on. EXIT_CODES is 7, or 9,0: the first run of the job that comes to
# its end takes the first of them, all later ones the last.
#
# What really ran is told by files: one in starts/ for each attempt, a line in `twice` for a second
# start of one, a lock on the file in alive/ held by every process of the job, a line in `overlaps`
# for who finds it held. Only what a shell does without forking: thousands of these run.

here=$1 codes=$2
shift 2
me=$CM_JOB_ID.$CM_ATTEMPT

set -C
{ echo $$ > "$here/starts/$me"; } 2>/dev/null || echo "$me" >> "$here/twice"
set +C
exec 9>> "$here/alive/$CM_JOB_ID"
flock --nonblock 9 || echo "$me" >> "$here/overlaps"

echo "begin $me"
for step; do
    case $step in
        o:*) cat "$here/data/${step#o:}" ;;
        e:*) cat "$here/data/${step#e:}" >&2 ;;
        s:*) sleep "${step#s:}" ;;
        deaf) trap '' TERM ;;
    esac
done

code=${codes##*,}
if [ "$code" != "$codes" ]; then
    set -C
    { echo > "$here/first/$CM_JOB_ID"; } 2>/dev/null && code=${codes%%,*}
fi
exit "$code"
