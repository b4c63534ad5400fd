#!/bin/sh
# Hosts that are no engine. The name this is called by says which.
case $(basename "$0") in
hangs) echo thinking >&2 && exec sleep 30 ;;
leaves-a-child) echo thinking >&2 && sleep 5 && exit ;;
fails) echo out of luck >&2 && exit 3 ;;
crashes) head -c 8 > /dev/null && echo out of luck >&2 && kill -9 $$ ;;
talks) echo 'usage: something else entirely' && sleep 0.2 ;;
esac
