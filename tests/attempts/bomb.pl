# bomb.pl COUNT SECONDS FILE: COUNT processes that do nothing but fork and end, each leaving its session to the next, until FILE is there or
# SECONDS have passed. How many there can be at once is for RLIMIT_NPROC to say.
use strict;
use warnings;
use POSIX qw(setsid);

my ($count, $seconds, $file) = @ARGV;
my $end = time + $seconds;
$SIG{CHLD} = 'IGNORE';

sub hop {
    until (-e $file || $end <= time) {
        my $pid = fork;
        # Where there is no room for another it tries again.
        next unless defined $pid;
        POSIX::_exit(0) if $pid;
        setsid();
    }
    POSIX::_exit(0);
}

for (1 .. $count) {
    my $pid = fork;
    hop() if defined $pid && !$pid;
}
sleep 1 until -e $file || $end <= time;
