# A service that writes down that it runs: sh ledger.sh LEDGER BEATS EXIT_CODE
ledger=$1 beats=$2
say() {
	read -r now rest </proc/uptime
	echo "$EDGEORCH_TASK_ID $EDGEORCH_ATTEMPT $1 $now" >>"$ledger"
}
say start
while [ "$beats" -gt 0 ]; do
	sleep 0.5
	say on
	beats=$((beats - 1))
done
say end
exit "$3"
