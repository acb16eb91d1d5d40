# jobs.pl SOCKET COUNT: starts COUNT jobs, each with a process that stays in it. Ends with 0 if all were started, with 1 at the first
# one for which there is no room.
use strict;
use warnings;
use IO::Socket::UNIX;

my ($socket, $count) = @ARGV;
pipe my $answers, my $told;

sub start {
    my ($nth) = @_;
    my $body = qq({"job":"u64001-$nth","account":"own","own":true});
    my $stream = IO::Socket::UNIX->new(Peer => $socket) or return '';
    print $stream "POST /v1/jobs HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: " . length($body) . "\r\n\r\n$body";
    local $/;
    return <$stream> // '';
}

for my $nth (1 .. $count) {
    unless (fork) {
        # Only the jobs keep it: nobody waits for their output.
        close $_ for *STDOUT, *STDERR;
        my $answer = '';
        for (1 .. 300) {
            $answer = start($nth);
            last if $answer =~ m{^HTTP/1.1 20} || $answer =~ /too_many_jobs/;
            select undef, undef, undef, 0.1;
        }
        my $started = $answer =~ m{^HTTP/1.1 20};
        syswrite $told, $started ? 'y' : 'n';
        sleep 300 if $started;
        exit 0;
    }
    sysread $answers, my $answer, 1;
    exit 1 if $answer eq 'n';
}
exit 0;
