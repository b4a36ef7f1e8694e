import sys

from sfrik.cli import main

sys.exit(main())
